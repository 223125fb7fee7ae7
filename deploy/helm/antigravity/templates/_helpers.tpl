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

{{- /* What a replica is, whether it keeps its journal beyond its pod (statefulset.yaml) or not (deployment.yaml). */ -}}
{{- define "antigravity.pod" -}}
metadata:
  labels: {{- include "antigravity.labels" . | nindent 4 }}
  annotations:
    checksum/settings: {{ include (print $.Template.BasePath "/configmap.yaml") . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  # The delay, the grace, and what the records need on their way out.
  terminationGracePeriodSeconds: {{ add (int .Values.settings.SHUTDOWN_GRACE_SECONDS) (int .Values.settings.SHUTDOWN_DELAY_SECONDS) 15 }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext: {fsGroup: 10001}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "antigravity.selector" . | nindent 10 }}
  containers:
    - name: gateway
      image: {{ include "antigravity.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- include "antigravity.container" . | nindent 6 }}
      envFrom:
        - configMapRef: {name: {{ include "antigravity.name" . }}}
        - secretRef: {name: {{ include "antigravity.secret" . }}}
      ports:
        - {name: http, containerPort: 8000}
      startupProbe:
        httpGet: {path: /health/live, port: http}
        periodSeconds: 2
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /health/live, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        # A worker that stands still for half a minute is beyond help; one that is busy is not.
        failureThreshold: 4
      readinessProbe:
        httpGet: {path: /health/ready, port: http}
        periodSeconds: 2
        timeoutSeconds: 3
        failureThreshold: 2
      resources: {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - {name: journal, mountPath: /var/lib/antigravity}
        - {name: tmp, mountPath: /tmp}
  volumes:
    {{- if not .Values.journal.persistent }}
    - name: journal
      emptyDir: {sizeLimit: {{ .Values.journal.sizeLimit }}}
    {{- end }}
    - name: tmp
      emptyDir: {medium: Memory, sizeLimit: 64Mi}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
