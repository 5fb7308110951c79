{{/* The security context of every container; the pod's has the rest. Nothing in values can loosen either. */}}
{{- define "nanochat.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "nanochat.podSecurity" -}}
{{- with .Values.security -}}
runAsNonRoot: true
runAsUser: {{ .runAsUser }}
runAsGroup: {{ .runAsGroup }}
fsGroup: {{ .fsGroup }}
fsGroupChangePolicy: {{ .fsGroupChangePolicy }}
{{- with .supplementalGroups }}
supplementalGroups:
  {{- toYaml . | nindent 2 }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}
{{- end -}}

{{/* What all pods of the release share. */}}
{{- define "nanochat.podBase" -}}
serviceAccountName: {{ include "nanochat.serviceAccountName" . }}
enableServiceLinks: false
securityContext:
  {{- include "nanochat.podSecurity" . | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- end -}}

{{/* Where a pod may run. Input: dict with nodeSelector, tolerations, affinity. */}}
{{- define "nanochat.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The pod spec of a server, of either mode, without its containers. */}}
{{- define "nanochat.servingPod" -}}
{{- include "nanochat.podBase" . }}
automountServiceAccountToken: false
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with include "nanochat.placement" (pick .Values "nodeSelector" "tolerations" "affinity") | trim }}
{{ . }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- $selector := dict "labelSelector" (dict "matchLabels" (include "nanochat.selector" (list $ "serve") | fromYaml)) }}
  {{- range . }}
  - {{ toYaml (merge (deepCopy .) $selector) | indent 4 | trim }}
  {{- end }}
{{- end }}
{{- with .Values.resourceClaims }}
resourceClaims:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.initContainers }}
initContainers:
  {{- include "nanochat.extraContainers" (list $ .) | nindent 2 }}
{{- end }}
volumes:
  {{- include "nanochat.scratchVolumes" . | nindent 2 }}
  - name: data
    persistentVolumeClaim:
      claimName: {{ .Values.storage.claimName }}
  {{- with include "nanochat.keysSecret" . }}
  - name: api-keys
    secret:
      secretName: {{ . }}
      defaultMode: 0440
      items:
        - key: {{ $.Values.apiKeys.key }}
          path: keys
  {{- end }}
  {{- with .Values.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "nanochat.scratchVolumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.tmpSize }}
- name: home
  emptyDir:
    sizeLimit: {{ .Values.tmpSize }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.shmSize }}
{{- end -}}

{{- define "nanochat.scratchMounts" -}}
- name: tmp
  mountPath: /tmp
- name: home
  mountPath: /home/nanochat
- name: shm
  mountPath: /dev/shm
{{- end -}}

{{/* Refuses what Kubernetes takes only with a limit, GPUs above all. Input: [field, resources]. */}}
{{- define "nanochat.checkResources" -}}
{{- $field := index . 0 -}}
{{- $resources := default dict (index . 1) -}}
{{- range $name, $quantity := $resources.requests -}}
{{- $limited := or (hasPrefix "hugepages-" $name) (and (contains "/" $name) (not (contains "kubernetes.io/" $name))) -}}
{{- if and $limited (not (hasKey (default dict $resources.limits) $name)) -}}
{{- fail (printf "%s.requests has %s: %v, %s.limits has none: move it to limits" $field $name $quantity $field) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The parts of a serving container that both modes share. */}}
{{- define "nanochat.servingContainer" -}}
{{- include "nanochat.checkResources" (list "resources" .Values.resources) -}}
image: {{ include "nanochat.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  {{- include "nanochat.containerSecurity" . | nindent 2 }}
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  {{- $resources := deepCopy .Values.resources }}
  {{- with .Values.resourceClaims }}
  {{- $claims := list }}
  {{- range . }}{{- $claims = append $claims (dict "name" .name) }}{{- end }}
  {{- $_ := set $resources "claims" $claims }}
  {{- end }}
  {{- toYaml $resources | nindent 2 }}
volumeMounts:
  {{- include "nanochat.scratchMounts" . | nindent 2 }}
  - name: data
    mountPath: /data
    readOnly: true
    {{- with .Values.storage.subPath }}
    subPath: {{ . | quote }}
    {{- end }}
  {{- if include "nanochat.keysSecret" . }}
  - name: api-keys
    mountPath: /etc/nanochat/api-keys
    readOnly: true
  {{- end }}
  {{- with .Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "nanochat.env" -}}
- name: NANOCHAT_HOME
  value: /data
- name: HOME
  value: /home/nanochat
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A user's containers, with our security context, our image where they name none. Input: [root, containers]. */}}
{{- define "nanochat.extraContainers" -}}
{{- $root := index . 0 -}}
{{- $defaults := dict
  "image" (include "nanochat.image" $root)
  "imagePullPolicy" $root.Values.image.pullPolicy
  "securityContext" (include "nanochat.containerSecurity" $root | fromYaml) -}}
{{- $containers := list -}}
{{- range index . 1 -}}
{{- include "nanochat.checkResources" (list (printf "%s: resources" .name) .resources) -}}
{{- $containers = append $containers (merge (deepCopy .) $defaults) -}}
{{- end -}}
{{- toYaml $containers -}}
{{- end -}}
