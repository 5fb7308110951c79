{{/* The same on every Ray pod: `ray start`, the controller and the replicas must agree. */}}
{{- define "nanochat.rayEnv" -}}
{{- include "nanochat.env" . }}
- name: RAY_SERVE_ENABLE_HA_PROXY
  value: {{ ternary "1" "0" .Values.ray.haproxy | quote }}
- name: RAY_SERVE_THROUGHPUT_OPTIMIZED
  value: {{ ternary "1" "0" .Values.ray.throughputOptimized | quote }}
- name: RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S
  value: {{ .Values.ray.drainSeconds | quote }}
- name: RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S
  value: {{ add .Values.server.graceSeconds 30 | quote }}
- name: RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S
  value: "60"
- name: RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS
  value: "1"
- name: RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S
  value: "30"
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
{{- end -}}

{{- define "nanochat.serveConfig" -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
  keep_alive_timeout_s: 90
logging_config:
  enable_access_log: false
applications:
  - name: chat
    route_prefix: /
    import_path: nanochat_platform.ray_serve:app
    deployments:
      - name: Chat
        {{- if .Values.autoscaling.enabled }}
        autoscaling_config:
          min_replicas: {{ .Values.autoscaling.minReplicas }}
          max_replicas: {{ .Values.autoscaling.maxReplicas }}
          target_ongoing_requests: {{ default .Values.server.maxRunning .Values.autoscaling.targetRequests }}
          upscale_delay_s: 10
          downscale_delay_s: {{ .Values.autoscaling.scaleDownSeconds }}
        {{- else }}
        num_replicas: {{ .Values.replicas }}
        {{- end }}
        graceful_shutdown_timeout_s: {{ .Values.server.graceSeconds }}
        ray_actor_options:
          num_cpus: {{ .Values.ray.replicaCPUs }}
          num_gpus: {{ dig "limits" "nvidia.com/gpu" 0 .Values.resources }}
        user_config:
          {{- if .Values.model.folder }}
          model: {{ .Values.model.folder | quote }}
          {{- else }}
          run: {{ default "tiny" .Values.model.run | quote }}
          {{- end }}
          name: {{ .Values.model.name | quote }}
          max_running: {{ .Values.server.maxRunning }}
          {{- if include "nanochat.keysSecret" . }}
          api_keys: /etc/nanochat/api-keys/keys
          {{- end }}
{{- end -}}
