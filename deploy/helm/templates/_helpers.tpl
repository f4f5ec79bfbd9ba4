{{- define "edge-cni.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* The lines of a container that name its image. */ -}}
{{- define "edge-cni.image-lines" -}}
image: {{ include "edge-cni.image" . }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end }}

{{- define "edge-cni.pull-secrets" -}}
{{- with .Values.image.pullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - {name: {{ . }}}
        {{- end }}
{{- end }}
{{- end }}

{{- /* The controller's name for the pods of the cluster. */ -}}
{{- define "edge-cni.controller-host" -}}
edge-controller.{{ .Release.Namespace }}.svc
{{- end }}

{{- /* A TOML list of strings, which JSON's form is too. */ -}}
{{- define "edge-cni.list" -}}
[{{ range $index, $value := . }}{{ if $index }}, {{ end }}{{ $value | quote }}{{ end }}]
{{- end }}

{{- /* Labels of roles that the admission policy does not protect without being told. */ -}}
{{- define "edge-cni.protected-labels" -}}
{{- $labels := list "fabedge/edge-community" "bocloud.com/edge-community" "edge-cni.io/role" "node-role.kubernetes.io/edge" -}}
{{- range .Values.roles }}
{{- if not (contains "node-restriction.kubernetes.io/" .label) }}{{ $labels = append $labels .label }}{{ end }}
{{- end }}
{{- $labels = concat $labels .Values.nodeLabels.protect | uniq -}}
{{- include "edge-cni.list" $labels }}
{{- end }}

{{- /* The node affinity of a hub or cloud role: its label, and no edge. */ -}}
{{- define "edge-cni.cloud-affinity" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      - matchExpressions:
          - {key: {{ .role.label }}, operator: In, values: [{{ .role.value | quote }}]}
          - {key: {{ .edge.label }}, operator: DoesNotExist}
{{- end }}

{{- /* What the agents of all roles have in their pod, before the affinity. */ -}}
{{- define "edge-cni.agent-table-observe" -}}
# For the probes below; the pod has the host's network.
[observe]
listen = {{ include "edge-cni.list" .Values.agents.observe }}
{{- end }}

{{- define "edge-cni.agent-probes" -}}
{{- $address := first .Values.agents.observe }}
{{- $port := last (splitList ":" $address) -}}
# A restart loses no packet. A node with many peers may need a second for its report.
livenessProbe:
  httpGet: {host: 127.0.0.1, path: /healthz, port: {{ $port }}}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
# Until the node has a view and a firewall, a rolling update goes no further.
readinessProbe:
  httpGet: {host: 127.0.0.1, path: /readyz, port: {{ $port }}}
  periodSeconds: 5
  timeoutSeconds: 10
resources:
  requests: {{ include "edge-cni.flow" .Values.agents.resources.requests }}
  limits: {{ include "edge-cni.flow" .Values.agents.resources.limits }}
securityContext:
  # XFRM, routes and nftables need NET_ADMIN. Only a privileged container may write the
  # network sysctls.
  privileged: true
{{- end }}

{{- /* A map as YAML in one line, as the manifests write short maps. */ -}}
{{- define "edge-cni.flow" -}}
{ {{- $first := true }}{{ range $key, $value := . }}{{ if not $first }}, {{ end }}{{ $key }}: {{ $value }}{{ $first = false }}{{ end -}} }
{{- end }}

{{- /* Nodes that may have the authority's key: hubs and cloud nodes. */ -}}
{{- define "edge-cni.controller-affinity" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      - matchExpressions:
          {{- if eq .Values.roles.hub.label .Values.roles.cloud.label }}
          - {key: {{ .Values.roles.hub.label }}, operator: In, values: [{{ .Values.roles.hub.value | quote }}, {{ .Values.roles.cloud.value | quote }}]}
          - {key: {{ .Values.roles.edge.label }}, operator: DoesNotExist}
          {{- else }}
          - {key: {{ .Values.roles.hub.label }}, operator: In, values: [{{ .Values.roles.hub.value | quote }}]}
          - {key: {{ .Values.roles.edge.label }}, operator: DoesNotExist}
      - matchExpressions:
          - {key: {{ .Values.roles.cloud.label }}, operator: In, values: [{{ .Values.roles.cloud.value | quote }}]}
          - {key: {{ .Values.roles.edge.label }}, operator: DoesNotExist}
          {{- end }}
{{- end }}
