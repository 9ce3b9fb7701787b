{{- /* What all pods share. Arguments: root, component; containers also take urlKey and tag. */}}

{{- define "redial.podSpec" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .root.Values.pods }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .volumes }}
volumes:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "redial.spread" -}}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: {{ $.root.Values.pods.whenUnsatisfiable }}
  labelSelector:
    matchLabels:
      {{- include "redial.selector" $ | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}

{{- define "redial.podMetadata" -}}
labels:
  {{- include "redial.selector" . | nindent 2 }}
  {{- with .root.Values.pods.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .root.Values.pods.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "redial.container" -}}
name: {{ .component }}
{{- with .root.Values.image }}
{{- $tag := $.tag | default .tag | default $.root.Chart.AppVersion }}
image: {{ .digest | empty | ternary (printf "%s:%s" .repository $tag) (printf "%s@%s" .repository .digest) }}
imagePullPolicy: {{ .pullPolicy }}
{{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- with .root.Values.pods.volumeMounts }}
volumeMounts:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "redial.secret" -}}
- name: {{ .name }}
  valueFrom: {secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}}
{{- end }}

{{- /* Settings as variables. Every program gets all, so that a bad one stops the migration, before any pod is replaced. */}}
{{- define "redial.settings" -}}
{{- range $section, $keys := .root.Values.settings }}
{{- range $key, $value := $keys }}
- name: REDIAL_{{ upper $section }}__{{ upper $key }}
  value: {{ include "redial.text" $value | quote }}
{{- end }}
{{- end }}
{{- with .root.Values.pods.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Numbers arrive as floats: 1000000 must not become 1e+06. */}}
{{- define "redial.text" -}}
{{- if kindIs "slice" . -}}
{{- $texts := list -}}
{{- range . }}{{ $texts = append $texts (include "redial.text" .) }}{{ end -}}
{{ join "," $texts }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}

{{- define "redial.serviceVariables" -}}
{{- with .root.Values }}
{{ include "redial.secret" (dict "name" "REDIAL_DATABASE__URL" "secret" .database.existingSecret "key" .database.urlKey) }}
{{ include "redial.secret" (dict "name" "REDIAL_BROKER__URL" "secret" .broker.existingSecret "key" .broker.urlKey) }}
{{ include "redial.secret" (dict "name" "REDIAL_SECRETS__KEYS" "secret" .encryption.existingSecret "key" .encryption.keysKey) }}
- name: REDIAL_METRICS__LISTEN
  value: {{ printf "%s:9464" .listenAddress | quote }}
{{- end }}
{{- include "redial.settings" . }}
{{- end }}

{{- define "redial.probes" -}}
startupProbe:
  httpGet: {path: /v1/health, port: {{ .port }}}
  periodSeconds: 2
  timeoutSeconds: 3
  # A minute: a service waits half as long for its database.
  failureThreshold: 30
livenessProbe:
  httpGet: {path: /v1/health, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /health/ready, port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end }}

{{- /* One pod more at a time. The next is replaced when the last must have ended, which bounds connections. */}}
{{- define "redial.rollout" -}}
strategy:
  type: RollingUpdate
  rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
minReadySeconds: {{ .grace }}
progressDeadlineSeconds: {{ add 600 .grace }}
{{- end }}
