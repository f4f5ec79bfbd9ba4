//! Checks whether the admission policy from `deploy/kubernetes/15-node-labels.yaml` prevents
//! kubelets from setting labels that put nodes into communities. The check reads the objects
//! themselves, because an object with the policy's name may contain anything.
//!
//! The policy may differ from the manifest only if it refuses more requests: it may have further
//! labels, speakers, rules and validations. A policy from another release, with other expressions,
//! is not recognised. In that case the operator must apply this release's manifest.

use k8s_openapi::api::admissionregistration::v1::{
    MatchResources, NamedRuleWithOperations, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    ValidatingAdmissionPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Name of the policy and of its binding in the manifest.
pub const NAME: &str = "edge-cni-node-labels";
/// Manifest of the policy and its binding.
pub const MANIFEST: &str = "deploy/kubernetes/15-node-labels.yaml";

/// CEL variables that hold lists. The policy's lists may be longer.
const LISTS: [(&str, &str); 2] = [
    (
        "labels",
        r#"["fabedge/edge-community", "bocloud.com/edge-community", "edge-cni.io/role", "node-role.kubernetes.io/edge"]"#,
    ),
    ("speakers", r#"["system:serviceaccount:kubeedge:cloudcore"]"#),
];

/// CEL variables that must equal those in the manifest.
const VARIABLES: [(&str, &str); 6] = [
    ("before", "oldObject != null && has(oldObject.metadata.labels) ? oldObject.metadata.labels : {}"),
    ("after", "has(object.metadata.labels) ? object.metadata.labels : {}"),
    (
        "restricted",
        r#"(variables.before.map(key, key) + variables.after.map(key, key)).filter(key, key.startsWith("node-restriction.kubernetes.io/") || key.contains(".node-restriction.kubernetes.io/"))"#,
    ),
    (
        "changed",
        "(variables.labels + variables.restricted).filter(key, (key in variables.before) != (key in variables.after) || (key in variables.before && variables.before[key] != variables.after[key]))",
    ),
    ("user", r#"has(request.userInfo.username) ? request.userInfo.username : """#),
    (
        "node",
        r#"variables.user.startsWith("system:node:") || (has(request.userInfo.groups) && "system:nodes" in request.userInfo.groups) || (has(request.subResource) && request.subResource == "status")"#,
    ),
];

/// Validations that the policy must have.
const VALIDATIONS: [&str; 2] = [
    "!variables.node || variables.changed.size() == 0",
    r#"!(variables.user in variables.speakers) || variables.changed.all(key, key == "node-role.kubernetes.io/edge" && request.operation == "CREATE")"#,
];

/// Operations and resources that the policy must match.
const OPERATIONS: [&str; 2] = ["CREATE", "UPDATE"];
const RESOURCES: [&str; 2] = ["nodes", "nodes/status"];

/// Checks that the policy prevents kubelets from setting the labels.
///
/// # Errors
/// Returns a text that names what is missing or differs.
pub fn check(
    policy: Option<&ValidatingAdmissionPolicy>,
    bindings: &[&ValidatingAdmissionPolicyBinding],
) -> Result<(), String> {
    let policy = policy.filter(|policy| policy.metadata.deletion_timestamp.is_none());
    let spec = policy.ok_or("it is not there")?.spec.as_ref().ok_or("it says nothing")?;
    check_policy(spec)?;
    match bindings.iter().any(|binding| is_in_force(binding)) {
        true => Ok(()),
        false => Err("no binding puts it in force for all Nodes with the action Deny".into()),
    }
}

fn check_policy(spec: &ValidatingAdmissionPolicySpec) -> Result<(), String> {
    // The default failure policy is Fail.
    if spec.failure_policy.as_deref().is_some_and(|policy| policy != "Fail") {
        return Err("its failurePolicy is not Fail".into());
    }
    if spec.param_kind.is_some() {
        return Err("it has parameters".into());
    }
    if spec.match_conditions.as_ref().is_some_and(|conditions| !conditions.is_empty()) {
        return Err("its matchConditions leave requests out".into());
    }
    let constraints = spec.match_constraints.as_ref().ok_or("it matches nothing")?;
    if leaves_out(constraints) {
        return Err("its matchConstraints leave Nodes out".into());
    }
    for (operation, resource) in OPERATIONS.into_iter().flat_map(|operation| RESOURCES.map(|of| (operation, of))) {
        let rules = constraints.resource_rules.iter().flatten();
        if !rules.into_iter().any(|rule| covers(rule, operation, resource)) {
            return Err(format!("it does not match {operation} of {resource}"));
        }
    }
    let variable = |name: &str| {
        let found = spec.variables.iter().flatten().find(|variable| variable.name == name);
        found.map(|variable| variable.expression.as_str())
    };
    for (name, expression) in LISTS {
        let there = variable(name).and_then(list).unwrap_or_default();
        let missing: Vec<String> =
            list(expression).unwrap_or_default().into_iter().filter(|item| !there.contains(item)).collect();
        if !missing.is_empty() {
            return Err(format!("its variable {name} lacks {}", missing.join(", ")));
        }
    }
    if let Some((name, _)) = VARIABLES.into_iter().find(|(name, expression)| variable(name) != Some(expression)) {
        return Err(format!("its variable {name} is not that of this release"));
    }
    let there = |expression: &&str| spec.validations.iter().flatten().any(|there| there.expression == **expression);
    match VALIDATIONS.iter().all(there) {
        true => Ok(()),
        false => Err("its validations are not those of this release".into()),
    }
}

/// Parses a list of strings in CEL. Such a list is also valid JSON.
fn list(expression: &str) -> Option<Vec<String>> {
    serde_json::from_str(expression).ok()
}

fn is_in_force(binding: &ValidatingAdmissionPolicyBinding) -> bool {
    let spec = &binding.spec;
    let everywhere = spec
        .match_resources
        .as_ref()
        .is_none_or(|resources| !leaves_out(resources) && resources.resource_rules.as_ref().is_none_or(Vec::is_empty));
    binding.metadata.deletion_timestamp.is_none()
        && spec.policy_name == NAME
        && spec.param_ref.is_none()
        && spec.validation_actions.iter().any(|action| action == "Deny")
        && everywhere
}

fn leaves_out(resources: &MatchResources) -> bool {
    let selects = |selector: &Option<LabelSelector>| {
        selector.as_ref().is_some_and(|selector| {
            selector.match_labels.as_ref().is_some_and(|labels| !labels.is_empty())
                || selector.match_expressions.as_ref().is_some_and(|expressions| !expressions.is_empty())
        })
    };
    resources.exclude_resource_rules.as_ref().is_some_and(|rules| !rules.is_empty())
        || selects(&resources.namespace_selector)
        || selects(&resources.object_selector)
}

fn covers(rule: &NamedRuleWithOperations, operation: &str, resource: &str) -> bool {
    let has =
        |list: &Option<Vec<String>>, wanted: &str| list.iter().flatten().any(|item| item == wanted || item == "*");
    rule.resource_names.as_ref().is_none_or(Vec::is_empty)
        && has(&rule.api_groups, "")
        && has(&rule.api_versions, "v1")
        && has(&rule.operations, operation)
        // `*` alone does not include subresources.
        && rule.resources.iter().flatten().any(|item| item == resource || item == "*/*")
        && rule.scope.as_deref().is_none_or(|scope| matches!(scope, "*" | "Cluster"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::admissionregistration::v1::MatchCondition;
    use serde_json::json;

    /// Returns the shipped objects as the API server returns them, with its defaults.
    fn shipped() -> (ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding) {
        let variables: Vec<_> = LISTS
            .into_iter()
            .chain(VARIABLES)
            .map(|(name, expression)| json!({"name": name, "expression": expression}))
            .collect();
        let policy = json!({
            "metadata": {"name": NAME},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {},
                    "resourceRules": [{
                        "apiGroups": [""], "apiVersions": ["v1"], "operations": OPERATIONS, "resources": RESOURCES, "scope": "*",
                    }],
                },
                "variables": variables,
                "validations": VALIDATIONS.map(|expression| json!({"expression": expression})),
            },
        });
        let binding =
            json!({"metadata": {"name": NAME}, "spec": {"policyName": NAME, "validationActions": ["Deny", "Audit"]}});
        (serde_json::from_value(policy).unwrap(), serde_json::from_value(binding).unwrap())
    }

    #[test]
    fn the_manifest_holds_the_policy_that_is_recognised() {
        let manifest = include_str!("../../../deploy/kubernetes/15-node-labels.yaml");
        for (name, expression) in LISTS.into_iter().chain(VARIABLES) {
            let lines = format!("    - name: {name}\n      expression: '{expression}'\n");
            assert!(manifest.contains(&lines), "{name}");
        }
        for expression in VALIDATIONS {
            assert!(manifest.contains(&format!("    - expression: '{expression}'\n")), "{expression}");
        }
        for line in [
            "failurePolicy: Fail",
            "operations: [CREATE, UPDATE]",
            "resources: [nodes, nodes/status]",
            "validationActions: [Deny]",
        ] {
            assert!(manifest.contains(line), "{line}");
        }
    }

    #[test]
    fn a_policy_that_refuses_less_than_ours_is_none() {
        let (policy, binding) = shipped();
        assert_eq!(check(Some(&policy), &[&binding]), Ok(()));
        assert!(check(None, &[&binding]).unwrap_err().contains("not there"));
        assert!(check(Some(&policy), &[]).unwrap_err().contains("binding"));
        type Edit = fn(&mut ValidatingAdmissionPolicySpec);
        let weaker: [(&str, Edit); 10] = [
            ("failurePolicy", |spec| spec.failure_policy = Some("Ignore".into())),
            ("parameters", |spec| spec.param_kind = Some(Default::default())),
            ("matchConditions", |spec| {
                let none = MatchCondition { name: "none".into(), expression: "false".into() };
                spec.match_conditions = Some(vec![none]);
            }),
            ("leave Nodes out", |spec| {
                let labels = Some([("site".to_owned(), "a".to_owned())].into());
                let selector = LabelSelector { match_labels: labels, ..LabelSelector::default() };
                spec.match_constraints.as_mut().unwrap().object_selector = Some(selector);
            }),
            ("leave Nodes out", |spec| {
                let constraints = spec.match_constraints.as_mut().unwrap();
                constraints.exclude_resource_rules = constraints.resource_rules.clone();
            }),
            ("CREATE of nodes", |spec| {
                let rules = spec.match_constraints.as_mut().unwrap().resource_rules.as_mut().unwrap();
                rules[0].operations = Some(vec!["UPDATE".into()]);
            }),
            ("nodes/status", |spec| {
                let rules = spec.match_constraints.as_mut().unwrap().resource_rules.as_mut().unwrap();
                rules[0].resources = Some(vec!["*".into(), "nodes".into()]);
            }),
            ("lacks fabedge/edge-community", |spec| {
                spec.variables.as_mut().unwrap()[0].expression = r#"["edge-cni.io/role"]"#.into();
            }),
            ("variable node", |spec| {
                let variables = spec.variables.as_mut().unwrap();
                variables.iter_mut().find(|variable| variable.name == "node").unwrap().expression = "false".into();
            }),
            ("validations", |spec| drop(spec.validations.as_mut().unwrap().remove(0))),
        ];
        for (says, change) in weaker {
            let mut policy = policy.clone();
            change(policy.spec.as_mut().unwrap());
            let why = check(Some(&policy), &[&binding]).unwrap_err();
            assert!(why.contains(says), "{says}: {why}");
        }
        let mut warns = binding.clone();
        warns.spec.validation_actions = vec!["Warn".into()];
        let mut narrow = binding.clone();
        let rules = policy.spec.as_ref().unwrap().match_constraints.clone();
        narrow.spec.match_resources = rules;
        let mut other = binding.clone();
        other.spec.policy_name = "other".into();
        assert!(check(Some(&policy), &[&warns, &narrow, &other]).is_err());
        assert_eq!(check(Some(&policy), &[&warns, &binding]), Ok(()), "one that denies is enough");
    }

    #[test]
    fn a_policy_that_refuses_more_is_as_good() {
        let (mut policy, binding) = shipped();
        let spec = policy.spec.as_mut().unwrap();
        let mut labels = list(LISTS[0].1).unwrap();
        labels.push("openyurt.io/is-edge-worker".into());
        spec.variables.as_mut().unwrap()[0].expression = serde_json::to_string(&labels).unwrap();
        let more = spec.validations.as_ref().unwrap()[0].clone();
        spec.validations.as_mut().unwrap().insert(0, more);
        assert_eq!(check(Some(&policy), &[&binding]), Ok(()));
    }
}
