{{- /* Image of a part of the driver: "vineyard.image" (list $ "node") */ -}}
{{- define "vineyard.image" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.image -}}
{{- with .registry }}{{ . }}/{{ end }}{{ .repository }}/{{ index $ 1 }}:{{ .tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Labels of everything: "vineyard.labels" (list $ "node") */ -}}
{{- define "vineyard.labels" -}}
{{- $root := index . 0 -}}
{{ include "vineyard.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end -}}

{{- define "vineyard.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: vineyard
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- /* What a role is bound to: "vineyard.subjects" (list $ "node") */ -}}
{{- define "vineyard.subjects" -}}
- kind: ServiceAccount
  name: vineyard-{{ index . 1 }}
  namespace: {{ (index . 0).Release.Namespace }}
{{- end -}}

{{- /* A container that may do nothing but compute and talk. */ -}}
{{- define "vineyard.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* Probes of a process of the driver. */ -}}
{{- define "vineyard.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end -}}
