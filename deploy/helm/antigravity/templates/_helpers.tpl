{{- define "antigravity.name" -}}
{{- printf "%s-antigravity" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "antigravity.selector" -}}
app.kubernetes.io/name: antigravity
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "antigravity.labels" -}}
{{ include "antigravity.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "antigravity.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "antigravity.secret" -}}
{{ required "existingSecret: name a Secret with DATABASE_URL, REDIS_URL, SECRET_KEY and ADMIN_TOKEN" .Values.existingSecret }}
{{- end -}}

{{- define "antigravity.container" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end -}}
