{{/* Each call to the pod with the fewest under way; a pod that drains says so to the health check and gets no more. */}}
{{- define "forwardpass.envoyConfig" -}}
{{- $tls := include "forwardpass.tlsSecret" . -}}
{{- $address := printf " address: %q" (include "forwardpass.everyAddress" .) -}}
{{- if contains "::" $address -}}{{- $address = printf "%s, ipv4_compat: true" $address -}}{{- end -}}
{{- $host := printf "%s-headless.%s.svc" (include "forwardpass.fullname" .) .Release.Namespace -}}
# Who it is: without that it takes no secrets of files that may change.
node: { id: envoy, cluster: {{ include "forwardpass.fullname" . }} }
admin:
  # It can also end Envoy: what others may ask is passed on by the listener `stats`.
  address: { socket_address: { address: 127.0.0.1, port_value: 9901 } }
static_resources:
  listeners:
    - name: grpc
      traffic_direction: INBOUND
      address: { socket_address: { {{- $address }}, port_value: 8001 } }
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: grpc
                codec_type: HTTP2
                stream_idle_timeout: 0s
                route_config:
                  virtual_hosts:
                    - name: forwardpass
                      domains: ["*"]
                      routes:
                        - match: { prefix: "/" }
                          route:
                            cluster: forwardpass
                            # The caller's grpc-timeout is the deadline; without one there is none here.
                            timeout: 0s
                            max_stream_duration: { grpc_timeout_header_max: 0s }
                            retry_policy:
                              # A pod that leaves refuses the call before anything is done for it.
                              retry_on: reset-before-request,connect-failure,refused-stream
                              num_retries: 2
                              # By another pod: the one that failed has the fewest calls under way, and would be asked again.
                              retry_host_predicate:
                                - name: envoy.retry_host_predicates.previous_hosts
                                  typed_config:
                                    "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
                              host_selection_retry_max_attempts: 5
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          {{- if $tls }}
          transport_socket:
            name: envoy.transport_sockets.tls
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
              {{- if .Values.grpcBalancing.envoy.requireClientCertificates }}
              require_client_certificate: true
              {{- end }}
              common_tls_context:
                alpn_protocols: ["h2"]
                tls_certificate_sds_secret_configs: [{{ include "forwardpass.envoySecret" "certificate" }}]
                {{- if .Values.grpcBalancing.envoy.requireClientCertificates }}
                validation_context_sds_secret_config: {{ include "forwardpass.envoySecret" "authorities" }}
                {{- end }}
          {{- end }}
    - name: stats
      address: { socket_address: { {{- $address }}, port_value: 9902 } }
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: stats
                route_config:
                  virtual_hosts:
                    - name: stats
                      domains: ["*"]
                      routes:
                        - { match: { path: /ready }, route: { cluster: admin } }
                        - { match: { path: /stats/prometheus }, route: { cluster: admin } }
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
    - name: forwardpass
      type: STRICT_DNS
      dns_refresh_rate: 2s
      lb_policy: LEAST_REQUEST
      # A pod that is not healthy gets nothing, even if none is: a call is told so at once, and counted, which wakes a pod
      # where there are none.
      common_lb_config: { healthy_panic_threshold: { value: 0 } }
      connect_timeout: 1s
      # Envoy's own limits are low: 1024 calls under way, and 3 that are tried again. Whose turn it is the servers say.
      circuit_breakers:
        thresholds: [{ max_requests: 65536, max_pending_requests: 65536, max_retries: 4096 }]
      load_assignment:
        cluster_name: forwardpass
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address: { socket_address: { address: {{ $host }}, port_value: 8001 } }
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config:
            http2_protocol_options: {}
      health_checks:
        - timeout: 1s
          interval: 1s
          no_traffic_interval: 0.5s
          unhealthy_threshold: 1
          healthy_threshold: 1
          grpc_health_check: {}
      {{- if $tls }}
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          sni: {{ $host }}
          common_tls_context:
            alpn_protocols: ["h2"]
            # Shown to servers that ask for one.
            tls_certificate_sds_secret_configs: [{{ include "forwardpass.envoySecret" "certificate" }}]
            validation_context_sds_secret_config: {{ include "forwardpass.envoySecret" "authorities" }}
      {{- end }}
    - name: admin
      type: STATIC
      connect_timeout: 1s
      load_assignment:
        cluster_name: admin
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address: { socket_address: { address: 127.0.0.1, port_value: 9901 } }
{{- end -}}

{{/* The Secret's files, by files of Envoy that have one secret each. It reads them anew when the kubelet has put new ones in
  the folder's place, as a cert-manager has it do long before the old ones end; what envoy.yaml itself names it reads once. */}}
{{- define "forwardpass.envoySecrets" -}}
certificate.yaml: |
  resources:
    - "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
      name: certificate
      tls_certificate:
        certificate_chain: { filename: /tls/tls.crt }
        private_key: { filename: /tls/tls.key }
        watched_directory: { path: /tls }
authorities.yaml: |
  resources:
    - "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
      name: authorities
      validation_context:
        trusted_ca: { filename: /tls/ca.crt }
        watched_directory: { path: /tls }
{{- end -}}

{{- define "forwardpass.envoySecret" -}}
{ name: {{ . }}, sds_config: { resource_api_version: V3, path_config_source: { path: /etc/envoy/{{ . }}.yaml } } }
{{- end -}}

{{/* Ask the admin page for a drain, wait for it, then for what is still under way: the pod's grace ends that wait. */}}
{{- define "forwardpass.envoyDrain" -}}
ask() { exec 3<>/dev/tcp/127.0.0.1/9901; printf '%s HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n' "$1" >&3; cat <&3; }; ask 'POST /drain_listeners?graceful&inboundonly' >/dev/null; sleep {{ .Values.grpcBalancing.envoy.drainSeconds }}; while ask 'GET /stats?filter=^http.grpc.downstream_rq_active$' | grep -q 'active: [1-9]'; do sleep 0.5; done
{{- end -}}
