{{- /* Mistakes that the schema can't express. Each problem is a sentence that says what to do. */}}
{{- define "redial.check" -}}
{{- $values := .Values -}}
{{- $problems := list -}}
{{- if not $values.image.repository -}}
  {{- $problems = append $problems "image.repository is not set: name the repository of the image built from deploy/Dockerfile" -}}
{{- end -}}
{{- range $secret := list
    (list "database" "database's URL" $values.database.urlKey)
    (list "broker" "broker's URL" $values.broker.urlKey)
    (list "encryption" "encryption keys" $values.encryption.keysKey) -}}
  {{- if not (get $values (first $secret)).existingSecret -}}
    {{- $problems = append $problems (printf
        "%s.existingSecret is not set: name the Secret that has the %s under the key %s"
        (index $secret 0) (index $secret 1) (index $secret 2)) -}}
  {{- end -}}
{{- end -}}

{{- $api := include "redial.connections" $values.api | int64 -}}
{{- $dispatcher := include "redial.connections" $values.dispatcher | int64 -}}
{{- $needed := add $api $dispatcher 1 -}}
{{- $available := int64 $values.database.maxConnections -}}
{{- if gt $needed $available -}}
  {{- $arithmetic := printf "apis may need (%s + 2) x %d, dispatchers (%s + 2) x %d and a migration 1"
      (include "redial.mostReplicas" $values.api) (int64 $values.api.poolSize)
      (include "redial.mostReplicas" $values.dispatcher) (int64 $values.dispatcher.poolSize) -}}
  {{- $remedy := "raise max_connections of PostgreSQL and this value, or lower replicas or poolSize" -}}
  {{- $problems = append $problems (printf "database.maxConnections is %d, but %s, which is %d: %s"
      $available $arithmetic $needed $remedy) -}}
{{- end -}}

{{- range $name := list "api" "dispatcher" -}}
  {{- with (get $values $name).autoscaling -}}
    {{- if and (ne .by "none") (gt (int64 .minReplicas) (int64 .maxReplicas)) -}}
      {{- $problems = append $problems (printf "%s.autoscaling.minReplicas is %d, more than maxReplicas, %d: lower it"
          $name (int64 .minReplicas) (int64 .maxReplicas)) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- with $values.dispatcher.autoscaling -}}
  {{- if and (eq .by "work") (gt (int64 .fallbackReplicas) (int64 .maxReplicas)) -}}
    {{- $problems = append $problems (printf "dispatcher.autoscaling.fallbackReplicas is %d, more than maxReplicas, %d: lower it"
        (int64 .fallbackReplicas) (int64 .maxReplicas)) -}}
  {{- end -}}
{{- end -}}

{{- if $values.ingress.enabled -}}
  {{- if not $values.ingress.hosts -}}
    {{- $problems = append $problems "ingress.hosts is empty: name the hosts under which clients call the API" -}}
  {{- end -}}
  {{- if not $values.settings.api.trusted_proxies -}}
    {{- $problems = append $problems (print "settings.api.trusted_proxies is empty: with an ingress, "
        "name the ranges of its pods, or all clients share the limits of one") -}}
  {{- end -}}
{{- end -}}
{{- if $values.networkPolicy.enabled -}}
  {{- range $name := list "database" "broker" -}}
    {{- if not (get $values.networkPolicy $name).to -}}
      {{- $problems = append $problems (printf
          "networkPolicy.%s.to is empty: say where the %s is, such as {ipBlock: {cidr: 10.1.2.3/32}}" $name $name) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}

{{- range $values.pods.env -}}
  {{- if hasPrefix "REDIAL_" .name -}}
    {{- $problems = append $problems (printf "pods.env has %s: set it under settings, by section and key" .name) -}}
  {{- end -}}
{{- end -}}
{{- range $key := list "ca_file" "client_cert" -}}
  {{- if and (dig "egress" $key "" $values.settings) (not $values.pods.volumeMounts) -}}
    {{- $problems = append $problems (printf
        "settings.egress.%s names a file, but nothing is mounted: add its volume to pods.volumes and pods.volumeMounts"
        $key) -}}
  {{- end -}}
{{- end -}}
{{- if $problems -}}
  {{- fail (printf "these values can't work:\n  - %s\n" (join "\n  - " $problems)) -}}
{{- end -}}
{{- end }}
