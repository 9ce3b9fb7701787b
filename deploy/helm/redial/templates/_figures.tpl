{{- /* What follows from the settings: grace periods, connections, the scaling target. */}}

{{- /* A duration such as 10s, 1500ms or 2m, in whole seconds, rounded up. */}}
{{- define "redial.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- if eq $unit "ms" -}}
{{ div (add $number 999) 1000 }}
{{- else -}}
{{ mul $number (get (dict "s" 1 "m" 60 "h" 3600) $unit) }}
{{- end -}}
{{- end }}

{{- /* Time to record and ring for what ended last. */}}
{{- define "redial.margin" -}}10{{- end }}

{{- /* preStop, drain_delay, 5 s for requests in flight. */}}
{{- define "redial.grace.api" -}}
{{- $drain := include "redial.seconds" .Values.settings.api.drain_delay -}}
{{ add .Values.api.preStopSeconds $drain 5 (include "redial.margin" .) }}
{{- end }}

{{- /* Attempts in flight: 20 s, or delivery.timeout and a second. */}}
{{- define "redial.grace.dispatcher" -}}
{{- $timeout := include "redial.seconds" .Values.settings.delivery.timeout -}}
{{ add (max 20 (add $timeout 1)) (include "redial.margin" .) }}
{{- end }}

{{- define "redial.mostReplicas" -}}
{{ eq .autoscaling.by "none" | ternary .replicas .autoscaling.maxReplicas | int64 }}
{{- end }}

{{- /* Connections of a component at worst: in a rollout one pod more is started, and one is ending. */}}
{{- define "redial.connections" -}}
{{ mul (add (include "redial.mostReplicas" .) 2) .poolSize }}
{{- end }}

{{- /* Work for each dispatcher: a share of its slots, which are 256 unless set. */}}
{{- define "redial.targetWork" -}}
{{- $slots := dig "dispatcher" "max_in_flight" 256 .Values.settings -}}
{{ max 1 (div (mul $slots .Values.dispatcher.autoscaling.targetPercent) 100) }}
{{- end }}
