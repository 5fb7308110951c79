{{/* The name of the release's objects: a DNS-1035 label short enough for what KubeRay appends. */}}
{{- define "nanochat.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $full = ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- end -}}
{{- $full = $full | lower | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $full -}}{{- $full = printf "nc-%s" $full -}}{{- end -}}
{{- $full | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "nanochat.isRay" -}}{{- if eq .Values.mode "rayservice" -}}true{{- end -}}{{- end -}}

{{/* The Service that clients use. KubeRay's has a name of its own, so that a change of mode replaces nothing in place. */}}
{{- define "nanochat.serviceName" -}}
{{- include "nanochat.fullname" . -}}{{- if include "nanochat.isRay" . -}}-serve-svc{{- end -}}
{{- end -}}

{{- define "nanochat.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "nanochat.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "nanochat.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What never changes about a pod. Input: [root, component]. */}}
{{- define "nanochat.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: nanochat
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object or pod. Input: [root, component]. */}}
{{- define "nanochat.labels" -}}
{{- $root := index . 0 -}}
{{- $own := include "nanochat.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/version" ($root.Chart.AppVersion | toString) -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_")) -}}
{{- toYaml (mergeOverwrite (deepCopy $root.Values.labels) $own) -}}
{{- end -}}

{{/* Metadata of an object. Input: dict root, component, name, [labels], [annotations]. */}}
{{- define "nanochat.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- $own := include "nanochat.labels" (list .root .component) | fromYaml }}
  {{- toYaml (merge $own (default dict .labels)) | nindent 2 }}
{{- with merge (dict) (default dict .annotations) .root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Metadata of a pod template. Input: [root, component, labels, annotations]. */}}
{{- define "nanochat.podMetadata" -}}
labels:
  {{- $own := include "nanochat.labels" (list (index . 0) (index . 1)) | fromYaml }}
  {{- /* A new version of the chart alone must not restart a model. */}}
  {{- $own = omit $own "helm.sh/chart" "app.kubernetes.io/version" }}
  {{- toYaml (merge $own (index . 2)) | nindent 2 }}
{{- with index . 3 }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Annotations of a serving pod: the keys' content is among them, so that a changed key takes effect. */}}
{{- define "nanochat.podAnnotations" -}}
{{- $own := dict -}}
{{- if .Values.apiKeys.hashes -}}
{{- $_ := set $own "checksum/api-keys" (include "nanochat.keysFile" . | sha256sum) -}}
{{- end -}}
{{- toYaml (merge $own .Values.podAnnotations) -}}
{{- end -}}

{{- define "nanochat.keysFile" -}}
{{- join "\n" .Values.apiKeys.hashes -}}
{{- end -}}

{{- define "nanochat.keysSecret" -}}
{{- if .Values.apiKeys.existingSecret -}}
{{- .Values.apiKeys.existingSecret -}}
{{- else if .Values.apiKeys.hashes -}}
{{- include "nanochat.fullname" . }}-api-keys
{{- end -}}
{{- end -}}

{{/* The one line a client needs besides the URL. */}}
{{- define "nanochat.model" -}}
{{- if .Values.model.folder -}}{{ .Values.model.folder }}{{- else -}}the newest model of run `{{ default "tiny" .Values.model.run }}`{{- end -}}
{{- end -}}

{{/* The spec of the Service for clients, without its selector. Input: [root, name of the port]. */}}
{{- define "nanochat.serviceSpec" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.service -}}
type: {{ .type }}
ports:
  - name: {{ index $ 1 }}
    port: {{ .port }}
    targetPort: {{ index $ 1 }}
    {{- if and .nodePort (ne .type "ClusterIP") }}
    nodePort: {{ .nodePort }}
    {{- end }}
{{- if eq .type "LoadBalancer" }}
{{- with .loadBalancerClass }}
loadBalancerClass: {{ . }}
{{- end }}
{{- with .loadBalancerSourceRanges }}
loadBalancerSourceRanges:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
