//! Finds fields that this program writes but that are missing from the served definition (CRD). The
//! API server drops such fields without an error.

use edge_controller_domain::state::Change;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps, JSONSchemaPropsOrArray,
    JSONSchemaPropsOrBool,
};

use crate::resources;
use crate::resources::kinds::Kind;

/// Maximum number of dropped fields that a warning names.
const NAMED: usize = 10;

/// The only field that must not be lost. Without it a segment goes to another node after the
/// quarantine, while the pods of the node that lost its Node object still use the segment. Other
/// fields that were added after the first release only give a node something, such as a community
/// or the end of a waiting time. `certificatesFrom`, whose loss would make an earlier certificate
/// valid again, is older than those fields.
const KEPT_UNTIL: &str = "spec.keptUntil";

/// Returns the fields of a kind that the served definition drops, as paths: `spec.keptUntil`.
pub(super) fn dropped(kind: Kind, served: &CustomResourceDefinition) -> Vec<String> {
    let all = resources::definitions();
    let ours = all.iter().find(|(_, ours)| ours.metadata.name.as_deref() == Some(kind.what()));
    let mut paths = Vec::new();
    for version in ours.iter().flat_map(|(_, ours)| &ours.spec.versions) {
        let served = served.spec.versions.iter().find(|served| served.name == version.name);
        if let (Some(ours), Some(served)) = (schema(version), served.and_then(schema)) {
            compare(ours, served, "", &mut paths);
        }
    }
    paths
}

fn schema(version: &CustomResourceDefinitionVersion) -> Option<&JSONSchemaProps> {
    version.schema.as_ref()?.open_api_v3_schema.as_ref()
}

fn compare(ours: &JSONSchemaProps, served: &JSONSchemaProps, path: &str, dropped: &mut Vec<String>) {
    if served.x_kubernetes_preserve_unknown_fields == Some(true) {
        return;
    }
    for (name, ours) in ours.properties.iter().flatten() {
        // Every object has these fields.
        if path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match served.properties.as_ref().and_then(|properties| properties.get(name)) {
            Some(served) => compare(ours, served, &below, dropped),
            None if served.additional_properties.is_some() => {}
            None => dropped.push(below),
        }
    }
    if let (Some(JSONSchemaPropsOrArray::Schema(ours)), Some(JSONSchemaPropsOrArray::Schema(served))) =
        (&ours.items, &served.items)
    {
        compare(ours, served, &format!("{path}[]"), dropped);
    }
    if let (Some(JSONSchemaPropsOrBool::Schema(ours)), Some(JSONSchemaPropsOrBool::Schema(served))) =
        (&ours.additional_properties, &served.additional_properties)
    {
        compare(ours, served, &format!("{path}.*"), dropped);
    }
}

/// Returns a text with the dropped fields and the command that restores them. `None` if nothing is
/// dropped.
pub(super) fn warning(kind: Kind, dropped: &[String]) -> Option<String> {
    let more = if dropped.len() > NAMED { ", ..." } else { "" };
    let named = dropped.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let refused = match loses_kept_until(kind, dropped) {
        true => "; until then a node that lost its Node object stays registered",
        false => "",
    };
    (!dropped.is_empty()).then(|| {
        format!(
            "the definition {} (CRD) is of an earlier release, and the API server drops {named}{more} from what is written: run kubectl apply -f \
             deploy/crds{refused}",
            kind.what()
        )
    })
}

fn loses_kept_until(kind: Kind, dropped: &[String]) -> bool {
    kind == Kind::Segment && dropped.iter().any(|path| path == KEPT_UNTIL)
}

/// Refuses a change with a field that must not be lost, if the served definition drops that field.
///
/// # Errors
/// Returns the reason and the command that remedies it.
pub(super) fn check(change: &Change, dropped: &[String]) -> Result<(), String> {
    match change {
        Change::PutSegment(row) | Change::GrantSegment(row)
            if row.kept_until.is_some() && loses_kept_until(Kind::Segment, dropped) =>
        {
            Err(format!(
                "segment {} is not released: the definition {} (CRD) is of an earlier release, and the API server would drop {KEPT_UNTIL}, so that \
                 another node could get it while pods of {} still use it; run kubectl apply -f deploy/crds",
                row.network,
                Kind::Segment.what(),
                row.node
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(kind: Kind) -> CustomResourceDefinition {
        let all = resources::definitions();
        all.into_iter().find(|(_, found)| found.metadata.name.as_deref() == Some(kind.what())).unwrap().1
    }

    fn root(definition: &mut CustomResourceDefinition) -> &mut JSONSchemaProps {
        definition.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap()
    }

    fn below<'a>(schema: &'a mut JSONSchemaProps, name: &str) -> &'a mut JSONSchemaProps {
        schema.properties.as_mut().unwrap().get_mut(name).unwrap()
    }

    #[test]
    fn of_our_own_definitions_nothing_is_dropped() {
        for kind in Kind::CUSTOM {
            assert_eq!(dropped(kind, &definition(kind)), [""; 0]);
            assert_eq!(warning(kind, &[]), None);
        }
    }

    #[test]
    fn what_an_older_definition_drops_is_named_with_its_path() {
        let mut old = definition(Kind::Node);
        let spec = below(root(&mut old), "spec");
        spec.properties.as_mut().unwrap().remove("certificatesFrom");
        below(spec, "nodeObject").properties.as_mut().unwrap().remove("machineId");
        let Some(JSONSchemaPropsOrArray::Schema(certificate)) = &mut below(spec, "certificates").items else {
            panic!("certificates are a list");
        };
        certificate.properties.as_mut().unwrap().remove("issuer");
        let found = dropped(Kind::Node, &old);
        assert_eq!(found, ["spec.certificates[].issuer", "spec.certificatesFrom", "spec.nodeObject.machineId"]);
        let said = warning(Kind::Node, &found).unwrap();
        assert!(said.contains("spec.nodeObject.machineId") && said.contains("kubectl apply -f deploy/crds"), "{said}");
        below(root(&mut old), "spec").x_kubernetes_preserve_unknown_fields = Some(true);
        assert_eq!(dropped(Kind::Node, &old), [""; 0]);
    }
}
