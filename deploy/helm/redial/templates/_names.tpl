{{- define "redial.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- /* At most 50 characters: "-dispatcher" follows, and names of Services end at 63. */}}
{{- define "redial.fullname" -}}
{{- $name := include "redial.name" . -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{ .Values.fullnameOverride | default $full | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "redial.selector" -}}
app.kubernetes.io/name: {{ include "redial.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "redial.labels" -}}
{{ include "redial.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "redial.metadata" -}}
name: {{ include "redial.fullname" .root }}-{{ .component }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "redial.labels" . | nindent 2 }}
{{- end }}

{{- define "redial.serviceAccount" -}}
{{- $own := .Values.serviceAccount.create | ternary (include "redial.fullname" .) "default" -}}
{{ .Values.serviceAccount.name | default $own }}
{{- end }}
