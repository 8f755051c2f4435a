{{- define "lockstep.labels" -}}
app.kubernetes.io/part-of: lockstep
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "lockstep.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "lockstep.account" -}}
system:serviceaccount:{{ .root.Release.Namespace }}:lockstep-{{ .part }}
{{- end }}

{{/* A policy file with the accounts of this release: the files name those of the namespace lockstep-system, and the Job controller's own. */}}
{{- define "lockstep.policy" -}}
{{ .root.Files.Get .file | replace "system:serviceaccount:lockstep-system:" (printf "system:serviceaccount:%s:" .root.Release.Namespace) | replace "system:serviceaccount:kube-system:job-controller" .root.Values.policies.jobControllerAccount }}
{{- end }}

{{/* Where traces are sent: environment, mounts and volumes of the pods of operator and gateway. Releases of older charts have no such values. */}}
{{- define "lockstep.otlp.env" -}}
{{- with (.Values.telemetry | default dict).otlp }}
{{- if .endpoint }}
- {name: LOCKSTEP_OTLP_ENDPOINT, value: {{ .endpoint | quote }}}
{{- if (.caConfigMap | default dict).name }}
- {name: LOCKSTEP_OTLP_CA_FILE, value: /etc/lockstep/otlp/ca.crt}
{{- else if hasPrefix "https://" .endpoint }}
{{- fail "telemetry.otlp.caConfigMap.name: name the ConfigMap with the CA of the https:// receiver" }}
{{- end }}
{{- if (.headersSecret | default dict).name }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ .headersSecret.name | quote }}, key: {{ .headersSecret.key | default "headers" | quote }}}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- define "lockstep.otlp.ca" -}}
{{- with (.Values.telemetry | default dict).otlp }}
{{- if and .endpoint (.caConfigMap | default dict).name }}
{{- toJson (dict "name" .caConfigMap.name "key" (.caConfigMap.key | default "ca.crt")) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Receivers of notifications: what the operator is told of them, and the files with their secrets. Releases of older charts have no such values. */}}
{{- define "lockstep.sinks" -}}
{{- $sinks := list }}
{{- range ((.Values.notifications | default dict).sinks | default list) }}
{{- if and (not .url) (not (.urlSecret | default dict).name) }}{{ fail (printf "notifications.sinks: %s needs a url or a urlSecret" .name) }}{{ end }}
{{- $sink := dict "name" .name "events" (.events | default list) "default" (.default | default false) "namespaces" (.namespaces | default list) }}
{{- $sink = merge $sink (dict "signed" (not (empty (.signingSecret | default dict).name)) "private_ca" (not (empty (.caConfigMap | default dict).name))) }}
{{- with .url }}{{ $sink = set $sink "url" . }}{{ end }}
{{- $sinks = append $sinks $sink }}
{{- end }}
{{- if $sinks }}{{ toJson $sinks }}{{ end }}
{{- end }}
{{- define "lockstep.sinks.files" -}}
{{- range ((.Values.notifications | default dict).sinks | default list) }}
{{- if and (not .url) (.urlSecret | default dict).name }}
- secret: {name: {{ .urlSecret.name | quote }}, optional: true, items: [{key: {{ .urlSecret.key | default "url" | quote }}, path: {{ printf "%s/url" .name | quote }}}]}
{{- end }}
{{- if (.signingSecret | default dict).name }}
- secret: {name: {{ .signingSecret.name | quote }}, optional: true, items: [{key: {{ .signingSecret.key | default "secret" | quote }}, path: {{ printf "%s/secret" .name | quote }}}]}
{{- end }}
{{- if (.caConfigMap | default dict).name }}
- configMap: {name: {{ .caConfigMap.name | quote }}, optional: true, items: [{key: {{ .caConfigMap.key | default "ca.crt" | quote }}, path: {{ printf "%s/ca.crt" .name | quote }}}]}
{{- end }}
{{- end }}
{{- end }}

{{- define "lockstep.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What the pods of operator, gateway and API have in common: root, and values of the part. */}}
{{- define "lockstep.pod" -}}
automountServiceAccountToken: true
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . | quote }}
{{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .part.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .part.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .part.tolerations }}
tolerations: {{ toYaml . | nindent 0 }}
{{- end }}
{{- with .part.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Whether the API server can stamp names: MutatingAdmissionPolicy is there from Kubernetes 1.36 on. */}}
{{- define "lockstep.stamps" -}}
{{- .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" -}}
{{- end }}
{{/* How attempts with an egress reach DNS. Releases of older charts, upgraded with --reuse-values, have no such value: then as values.yaml says. */}}
{{- define "lockstep.agentDns" -}}
{{- $pods := dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" "kube-system")) "podSelector" (dict "matchLabels" (dict "k8s-app" "kube-dns")) }}
{{- $ports := list (dict "protocol" "UDP" "port" 53) (dict "protocol" "TCP" "port" 53) }}
{{- dig "dns" (list (dict "to" (list $pods) "ports" $ports)) (.Values.networkPolicy.agents | default dict) | toJson }}
{{- end }}

{{/* Where the HTTP API is reached: from outside where it is known how, else inside of the cluster. */}}
{{- define "lockstep.apiUrl" -}}
{{- $api := .Values.api -}}
{{- if $api.url -}}
{{ $api.url | trimSuffix "/" }}
{{- else if and $api.ingress.enabled $api.ingress.host -}}
{{ ternary "https" "http" (ne $api.ingress.tlsSecret "") }}://{{ $api.ingress.host }}
{{- else if and $api.httpRoute.enabled $api.httpRoute.hostnames -}}
https://{{ first $api.httpRoute.hostnames }}
{{- else -}}
{{ ternary "http" "https" (eq $api.tls.mode "none") }}://lockstep-api.{{ .Release.Namespace }}.svc
{{- end -}}
{{- end }}
