{{/* Names and labels. */}}
{{- define "forwardpass.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "forwardpass.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "forwardpass.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "forwardpass.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "forwardpass.selector" -}}
app.kubernetes.io/name: {{ include "forwardpass.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "forwardpass.ownLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "forwardpass.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "forwardpass.labels" -}}
{{ include "forwardpass.ownLabels" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "forwardpass.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "forwardpass.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* An image by its digest, else by its tag, else by the chart's appVersion: (dict "image" ... "root" $). */}}
{{- define "forwardpass.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The Secret with tls.crt and tls.key; empty: no TLS. */}}
{{- define "forwardpass.tlsSecret" -}}
{{- if .Values.tls.secretName -}}
{{- .Values.tls.secretName -}}
{{- else if .Values.tls.certManager.enabled -}}
{{- printf "%s-tls" (include "forwardpass.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* What the chart itself sets, under what the values say: a tree of settings as JSON. */}}
{{- define "forwardpass.settings" -}}
{{- $host := include "forwardpass.everyAddress" . -}}
{{- $own := dict "host" $host "http" (dict "port" 8000) "grpc" (dict "port" 8001) "metrics" (dict "port" 8002 "host" $host) -}}
{{- $repository := dict "path" (list "/models") -}}
{{- if eq (include "forwardpass.models" .) "remote" -}}
{{- $_ := set $repository "path" .Values.modelRepository.remote.urls -}}
{{- $_ := set $repository "control_mode" "poll" -}}
{{- /* A version that is being replaced is there beside what is kept: a pod with more than the volume's size is evicted. */ -}}
{{- $bytes := include "forwardpass.bytes" .Values.modelRepository.remote.cacheSize | int64 -}}
{{- $_ := set $own "remote" (dict "cache_folder" "/cache" "cache_max_bytes" (div (mul $bytes 3) 4)) -}}
{{- end -}}
{{- $_ := set $own "repository" $repository -}}
{{- if eq .Values.engine "triton" -}}
{{- $_ := set $own "engine" (dict "kind" "triton") -}}
{{- $_ := set $own "triton" (dict "url" (include "forwardpass.tritonUrl" .)) -}}
{{- end -}}
{{- if include "forwardpass.tlsSecret" . -}}
{{- $files := dict "certificate" "/tls/tls.crt" "key" "/tls/tls.key" -}}
{{- $_ := set $own "tls" $files -}}
{{- $_ := set $own "http_tls" $files -}}
{{- end -}}
{{- $scaling := .Values.autoscaling -}}
{{- if ne $scaling.kind "none" -}}
{{- $told := dict "target_saturation" $scaling.targetSaturation -}}
{{- if and (eq $scaling.kind "keda") (eq $scaling.keda.trigger "external") -}}
{{- $_ := set $told "external_scaler" true -}}
{{- $_ := set $told "peers" (printf "%s-headless.%s.svc:8002" (include "forwardpass.fullname" .) .Release.Namespace) -}}
{{- end -}}
{{- $_ := set $own "scaling" $told -}}
{{- end -}}
{{- if .Values.auth.keysSecret -}}
{{- $_ := set $own "auth" (dict "keys" "/keys") -}}
{{- else if not (or (default dict .Values.settings.auth).keys (default dict .Values.settings.auth).jwt_jwks (include "forwardpass.waysIn" .)) -}}
{{- /* Nobody shows who he is, and the cluster's own pods alone get to it. From further away it has to be said. */ -}}
{{- $_ := set $own "auth" (dict "insecure" true) -}}
{{- end -}}
{{- mergeOverwrite $own (deepCopy .Values.settings) | toJson -}}
{{- end -}}

{{/* All addresses of a pod, of whichever families its cluster gives it. */}}
{{- define "forwardpass.everyAddress" -}}
{{- if eq (join "," .Values.service.ipFamilies) "IPv4" -}}0.0.0.0{{- else -}}::{{- end -}}
{{- end -}}

{{/* The families of a Service's addresses; nothing: the cluster's. */}}
{{- define "forwardpass.ipFamilies" -}}
{{- with .Values.service.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.service.ipFamilies }}
ipFamilies: {{ toJson . }}
{{- end }}
{{- end -}}

{{/* How callers get to a Service: to the servers' and to Envoy's alike. */}}
{{- define "forwardpass.serviceReach" -}}
type: {{ .Values.service.type }}
{{- include "forwardpass.ipFamilies" . }}
{{- range $name := list "loadBalancerClass" "externalTrafficPolicy" }}
{{- with get $.Values.service $name }}
{{ $name }}: {{ . }}
{{- end }}
{{- end }}
{{- with .Values.service.loadBalancerSourceRanges }}
loadBalancerSourceRanges:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The values by which callers from outside of the cluster get in; empty: there are none. */}}
{{- define "forwardpass.waysIn" -}}
{{- $ways := list -}}
{{- if ne .Values.service.type "ClusterIP" -}}{{- $ways = append $ways (printf "service.type %s" .Values.service.type) -}}{{- end -}}
{{- if .Values.ingress.enabled -}}{{- $ways = append $ways "ingress.enabled" -}}{{- end -}}
{{- if .Values.gateway.enabled -}}{{- $ways = append $ways "gateway.enabled" -}}{{- end -}}
{{- join ", " $ways -}}
{{- end -}}

{{/* A limit of CPU in whole cores, 1 at least: "500m" is 1, 2.5 are 3. */}}
{{- define "forwardpass.cores" -}}
{{- $text := toString . -}}
{{- $cores := ternary (divf (trimSuffix "m" $text | float64) 1000) (float64 $text) (hasSuffix "m" $text) -}}
{{- max 1 (ceil $cores | int) -}}
{{- end -}}

{{/* An amount of Ki, Mi, Gi or Ti. */}}
{{- define "forwardpass.bytes" -}}
{{- $shift := index (dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776) (regexFind "[A-Za-z]+$" .) -}}
{{- mul (regexFind "^[0-9]+" . | int64) $shift -}}
{{- end -}}

{{/* The settings as FORWARDPASS_ variables, sorted; lists are JSON, as the server reads them. */}}
{{- define "forwardpass.environment" -}}
{{- range $section, $value := include "forwardpass.settings" . | fromJson }}
{{- if kindIs "map" $value }}
{{- range $name, $inner := $value }}
- name: {{ printf "FORWARDPASS_%s__%s" $section $name | upper }}
  value: {{ include "forwardpass.settingText" $inner | quote }}
{{- end }}
{{- else }}
- name: {{ printf "FORWARDPASS_%s" $section | upper }}
  value: {{ include "forwardpass.settingText" $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Numbers from JSON are floats: a large one would be written as 1e+06. */}}
{{- define "forwardpass.settingText" -}}
{{- if kindIs "slice" . -}}{{ toJson . }}
{{- else if kindIs "float64" . -}}{{ if eq (floor .) . }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- else -}}{{ . }}
{{- end -}}
{{- end -}}

{{- define "forwardpass.resources" -}}
{{- if .Values.resources -}}
{{- toYaml .Values.resources -}}
{{- else -}}
{{- $presets := dict
  "cpu-small" (dict "cpu" "2" "memory" "1Gi")
  "cpu-medium" (dict "cpu" "4" "memory" "4Gi")
  "cpu-large" (dict "cpu" "16" "memory" "16Gi")
  "gpu" (dict "cpu" "4" "memory" "16Gi")
  "none" dict -}}
{{- $amounts := deepCopy (get $presets .Values.resourcesPreset) -}}
{{- $gpus := .Values.gpu.count | int -}}
{{- if and (eq .Values.resourcesPreset "gpu") (eq $gpus 0) -}}{{- $gpus = 1 -}}{{- end -}}
{{- if gt $gpus 0 -}}{{- $_ := set $amounts .Values.gpu.resource (toString $gpus) -}}{{- end -}}
{{- if $amounts -}}
{{- dict "requests" $amounts "limits" $amounts | toYaml -}}
{{- else -}}
{}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where the Tritons are, as the server's setting has it. */}}
{{- define "forwardpass.tritonUrl" -}}
{{- $triton := .Values.triton -}}
{{- if eq $triton.placement "external" -}}{{ join "," $triton.urls }}
{{- else if eq $triton.placement "sidecar" -}}grpc://127.0.0.1:9001
{{- else -}}dns:///{{ include "forwardpass.fullname" . }}-triton.{{ .Release.Namespace }}.svc:8001
{{- end -}}
{{- end -}}

{{/* Of a rolling update of the Tritons' own Deployment. A merge would take a 0 for nothing. */}}
{{- define "forwardpass.tritonStrategy" -}}
{{- range $name, $value := .Values.updateStrategy }}
{{ $name }}: {{ ternary (get $.Values.triton.updateStrategy $name) $value (hasKey $.Values.triton.updateStrategy $name) }}
{{- end }}
{{- end -}}

{{/* What no schema can say. */}}
{{- define "forwardpass.check" -}}
{{- $repository := .Values.modelRepository -}}
{{- if and (eq $repository.kind "pvc") (not $repository.pvc.existingClaim) -}}
{{- fail "modelRepository.pvc.existingClaim: needed where modelRepository.kind is pvc" -}}
{{- end -}}
{{- if and (eq $repository.kind "remote") (not $repository.remote.urls) -}}
{{- fail "modelRepository.remote.urls: needed where modelRepository.kind is remote" -}}
{{- end -}}
{{- if eq .Values.engine "triton" -}}
{{- if and (eq .Values.triton.placement "external") (not .Values.triton.urls) -}}
{{- fail "triton.urls: needed where triton.placement is external" -}}
{{- end -}}
{{- end -}}
{{- $scaling := .Values.autoscaling -}}
{{- if and (ne $scaling.kind "none") (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas: is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and (eq $scaling.kind "hpa") (lt (int $scaling.minReplicas) 1) -}}
{{- fail "autoscaling.minReplicas: 0 needs autoscaling.kind keda; an HPA keeps one pod at least" -}}
{{- end -}}
{{- if and (eq $scaling.kind "hpa") (eq (include "forwardpass.scales" .) "tritons") -}}
{{- fail "autoscaling.kind: hpa counts pods by what they tell themselves; the chart's Tritons are counted by what the servers tell of them: use keda" -}}
{{- end -}}
{{- if and (ne $scaling.kind "none") (eq .Values.engine "triton") (eq .Values.triton.placement "external") -}}
{{- fail "autoscaling.kind: servers in front of triton.placement external tell how busy those Tritons are, which more servers would not change" -}}
{{- end -}}
{{- if and (eq $scaling.kind "keda") (eq $scaling.keda.trigger "external") (include "forwardpass.toZero" .) -}}
{{- fail "autoscaling.keda.trigger: external can't wake the first pod (autoscaling.minReplicas 0, keda.idleToZero), for nobody is ready to be asked, as servers without a Triton are not; use prometheus" -}}
{{- end -}}
{{- if and $scaling.keda.idleToZero (eq (int $scaling.minReplicas) 0) -}}
{{- fail "autoscaling.keda.idleToZero: with autoscaling.minReplicas 0 there are none anyhow; it wants one at least, for when there is work" -}}
{{- end -}}
{{- if and (eq $scaling.kind "keda") (include "forwardpass.toZero" .) (eq (include "forwardpass.scales" .) "tritons") (ne .Values.grpcBalancing.kind "envoy") (not $scaling.keda.extraTriggers) -}}
{{- fail "autoscaling.minReplicas: 0, or keda.idleToZero, needs grpcBalancing.kind envoy or autoscaling.keda.extraTriggers; servers without a Triton are not ready, so that no call gets to them and none is counted" -}}
{{- end -}}
{{- if and (eq $scaling.kind "keda") (eq $scaling.keda.trigger "external") (default dict .Values.settings.metrics).token_file -}}
{{- fail "settings.metrics.token_file: goes without autoscaling.keda.trigger external, for the pods show each other no token; use prometheus" -}}
{{- end -}}
{{- if and (eq .Values.engine "triton") (or (eq .Values.resourcesPreset "gpu") (gt (int .Values.gpu.count) 0)) (not .Values.resources) -}}
{{- fail "gpu.count, resourcesPreset: a server in front of Tritons has no use of a GPU; give them theirs by triton.resources" -}}
{{- end -}}
{{- if and (ne $scaling.kind "none") (gt (include "forwardpass.atPeak" . | int) (int $scaling.maxReplicas)) -}}
{{- fail (printf "autoscaling.maxReplicas: is %d, and capacity.peak takes %s pods" (int $scaling.maxReplicas) (include "forwardpass.atPeak" .)) -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled .Values.tls.secretName -}}
{{- fail "tls: give tls.secretName or enable tls.certManager, not both" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name: needed where tls.certManager.enabled" -}}
{{- end -}}
{{- if and .Values.grpcBalancing.envoy.requireClientCertificates (not (include "forwardpass.tlsSecret" .)) -}}
{{- fail "grpcBalancing.envoy.requireClientCertificates: needs tls" -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
{{- fail "gateway.parentRefs: needed where gateway.enabled; a route belongs to a Gateway" -}}
{{- end -}}
{{- if eq (include "forwardpass.routesMeet" .) "true" -}}
{{- fail "gateway.grpc: a Gateway takes the HTTPRoute or the GRPCRoute, not both, where they have a listener and a hostname in common: give gateway.grpc.hostnames, or gateway.grpc.parentRefs with another sectionName, or name one of them in gateway.routes" -}}
{{- end -}}
{{- if and .Values.gateway.canary.weight (not .Values.gateway.canary.serviceName) -}}
{{- fail "gateway.canary.serviceName: needed where gateway.canary.weight is set" -}}
{{- end -}}
{{- range $where, $surge := dict "updateStrategy" .Values.updateStrategy "triton.updateStrategy" (include "forwardpass.tritonStrategy" . | fromYaml) -}}
{{- if and (has (toString $surge.maxSurge) (list "0" "0%")) (has (toString $surge.maxUnavailable) (list "0" "0%")) -}}
{{- fail (printf "%s: maxSurge and maxUnavailable are both 0, and no pod could ever be replaced" $where) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts: needed where ingress.enabled; an Ingress without a rule is not taken" -}}
{{- end -}}
{{- if eq (int .Values.service.httpPort) (int .Values.service.grpcPort) -}}
{{- fail "service.grpcPort: is service.httpPort; a Service has a port of each" -}}
{{- end -}}
{{- if not (regexMatch "^[a-z][-a-z0-9]*$" (include "forwardpass.fullname" .)) -}}
{{- fail (printf "fullnameOverride: the Services would be called %s, and a Service's name begins with a letter and has no dots" (include "forwardpass.fullname" .)) -}}
{{- end -}}
{{- if and .Values.resources (gt (int .Values.gpu.count) 0) -}}
{{- fail (printf "gpu.count: goes into the preset, which resources are taken instead of: put %s among their limits" .Values.gpu.resource) -}}
{{- end -}}
{{- if and $scaling.targetCPUUtilizationPercentage (eq $scaling.kind "hpa") (not (default dict (include "forwardpass.resources" . | fromYaml).requests).cpu) -}}
{{- fail "autoscaling.targetCPUUtilizationPercentage: is of the requests of cpu, and resources have none" -}}
{{- end -}}
{{- $own := include "forwardpass.ownLabels" . | fromYaml -}}
{{- $metrics := .Values.metrics -}}
{{- range $where, $labels := dict "podLabels" .Values.podLabels "commonLabels" .Values.commonLabels "metrics.serviceMonitor.labels" $metrics.serviceMonitor.labels "metrics.podMonitor.labels" $metrics.podMonitor.labels "metrics.prometheusRule.labels" $metrics.prometheusRule.labels "metrics.dashboards.labels" $metrics.dashboards.labels -}}
{{- range $name, $_ := $labels -}}
{{- if or (hasKey $own $name) (eq $name "app.kubernetes.io/component") -}}
{{- fail (printf "%s: %s is the chart's own label, by which its pods are found" $where $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $written := include "forwardpass.environment" . | fromYamlArray -}}
{{- range $entry := .Values.extraEnv -}}
{{- range $written -}}
{{- if eq .name (toString $entry.name) -}}
{{- fail (printf "extraEnv: %s is written by the chart, of settings and other values" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (toString .Values.podDisruptionBudget.minAvailable) (toString .Values.podDisruptionBudget.maxUnavailable) -}}
{{- fail "podDisruptionBudget: minAvailable or maxUnavailable, not both; set the other one to \"\"" -}}
{{- end -}}
{{- $auth := (include "forwardpass.settings" . | fromJson).auth | default dict -}}
{{- if not (or $auth.keys $auth.jwt_jwks $auth.insecure) -}}
{{- if hasKey (default dict .Values.settings.auth) "insecure" -}}
{{- fail "settings.auth.insecure: is false, and nobody could show who he is: give auth.keysSecret or settings.auth.jwt_jwks" -}}
{{- end -}}
{{- fail (printf "settings.auth.insecure: %s: whoever gets there from outside of the cluster may predict. Give auth.keysSecret or settings.auth.jwt_jwks; or say it in so many words, settings.auth.insecure true" (include "forwardpass.waysIn" .)) -}}
{{- end -}}
{{- $service := .Values.service -}}
{{- if and $service.externalTrafficPolicy (eq $service.type "ClusterIP") -}}
{{- fail "service.externalTrafficPolicy: is of callers from outside of the cluster, who need service.type LoadBalancer or NodePort" -}}
{{- end -}}
{{- range $name := list "loadBalancerClass" "loadBalancerSourceRanges" -}}
{{- if and (get $service $name) (ne $service.type "LoadBalancer") -}}
{{- fail (printf "service.%s: needs service.type LoadBalancer" $name) -}}
{{- end -}}
{{- end -}}
{{- if and (eq (len $service.ipFamilies) 2) (not (has $service.ipFamilyPolicy (list "PreferDualStack" "RequireDualStack"))) -}}
{{- fail "service.ipFamilies: two of them need service.ipFamilyPolicy PreferDualStack or RequireDualStack" -}}
{{- end -}}
{{- if and .Values.test.model (or $auth.keys $auth.jwt_jwks) (not .Values.test.keySecret.name) -}}
{{- fail "test.keySecret.name: needed where test.model is asked and callers have to show a key or a token" -}}
{{- end -}}
{{- if (default dict .Values.settings.http_tls).client_ca -}}
{{- fail "settings.http_tls.client_ca: the kubelet has no certificate to show, and would take the pods to be dead; ask for certificates by settings.tls.client_ca (gRPC), or for keys" -}}
{{- end -}}
{{- range $kind := list "serviceMonitor" "podMonitor" -}}
{{- $monitor := get $.Values.metrics $kind -}}
{{- if and $monitor.enabled (default dict $.Values.settings.metrics).token_file (not $monitor.authorization) -}}
{{- fail (printf "metrics.%s.authorization: needed where settings.metrics.token_file is set, or nothing is scraped" $kind) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) -}}
{{- $far := list -}}
{{- if eq $repository.kind "remote" -}}{{- $far = append $far "modelRepository.kind remote" -}}{{- end -}}
{{- if and (eq .Values.engine "triton") (eq .Values.triton.placement "external") -}}{{- $far = append $far "triton.placement external" -}}{{- end -}}
{{- if (default dict .Values.settings.otlp).endpoint -}}{{- $far = append $far "settings.otlp.endpoint" -}}{{- end -}}
{{- if hasPrefix "http" (default "" $auth.jwt_jwks) -}}{{- $far = append $far "settings.auth.jwt_jwks" -}}{{- end -}}
{{- if $far -}}
{{- fail (printf "networkPolicy.egress: lets the pods out to names and to each other alone, and %s is further away" (join ", " $far)) -}}
{{- end -}}
{{- end -}}
{{- $given := .Values.settings -}}
{{- if or (hasKey $given "host") (hasKey (default dict $given.metrics) "host") -}}
{{- fail "settings.host, settings.metrics.host: a pod listens on all its addresses; networkPolicy says who may call" -}}
{{- end -}}
{{- if hasKey (default dict $given.engine) "kind" -}}
{{- fail "settings.engine.kind: is chosen by engine and triton.placement" -}}
{{- end -}}
{{- range $section := list "tls" "http_tls" -}}
{{- if or (hasKey (default dict (get $given $section)) "certificate") (hasKey (default dict (get $given $section)) "key") -}}
{{- fail (printf "settings.%s: certificate and key are those of tls.secretName or tls.certManager, which probes, Services and Envoy go by" $section) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "external_scaler" "peers" "target_saturation" -}}
{{- if hasKey (default dict $given.scaling) $name -}}
{{- fail (printf "settings.scaling.%s: is chosen by autoscaling.keda.trigger and autoscaling.targetSaturation" $name) -}}
{{- end -}}
{{- end -}}
{{- if hasKey (default dict $given.repository) "path" -}}
{{- fail "settings.repository.path: is chosen by modelRepository" -}}
{{- end -}}
{{- if hasKey (default dict $given.triton) "url" -}}
{{- fail "settings.triton.url: is chosen by triton.placement; those that are there are triton.urls" -}}
{{- end -}}
{{- range $name := list "http" "grpc" "metrics" -}}
{{- if hasKey (default dict (get $.Values.settings $name)) "port" -}}
{{- fail (printf "settings.%s.port: the pod's ports are fixed; those of the Service are service.httpPort and service.grpcPort" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* "true" where both routes of a Gateway are for one listener and one hostname: the later one of them would be rejected.
  Source: Gateway API, GRPCRoute, spec.hostnames. */}}
{{- define "forwardpass.routesMeet" -}}
{{- $gateway := .Values.gateway -}}
{{- $mine := $gateway.grpc.hostnames | default $gateway.hostnames -}}
{{- $apart := and $gateway.grpc.parentRefs (ne (toJson $gateway.grpc.parentRefs) (toJson $gateway.parentRefs)) -}}
{{- if and $gateway.enabled (has "http" $gateway.routes) (has "grpc" $gateway.routes) (not $apart) -}}
{{- $meet := or (empty $mine) (empty $gateway.hostnames) -}}
{{- range $mine -}}{{- if has . $gateway.hostnames -}}{{- $meet = true -}}{{- end -}}{{- end -}}
{{- $meet -}}
{{- end -}}
{{- end -}}

{{- define "forwardpass.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end -}}

{{/* Where the pods of a component may run: the chart's values, each but those that `scheduling` of Tritons or Envoy has.
  As JSON: (dict "component" ... "root" $). */}}
{{- define "forwardpass.scheduling" -}}
{{- $values := .root.Values -}}
{{- $own := dict "triton" $values.triton.scheduling "envoy" $values.grpcBalancing.envoy.scheduling -}}
{{- $found := dict -}}
{{- range $key := list "priorityClassName" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "runtimeClassName" -}}
{{- if or (ne $key "runtimeClassName") (has $.component (list "server" "triton")) -}}
{{- $_ := set $found $key (get $values $key) -}}
{{- end -}}
{{- end -}}
{{- range $key, $value := default dict (get $own .component) -}}
{{- $_ := set $found $key $value -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* Where pods may run, and what they come from: (dict "component" ... "root" $). */}}
{{- define "forwardpass.placement" -}}
{{- $scheduling := include "forwardpass.scheduling" . | fromJson -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $key := list "priorityClassName" "runtimeClassName" }}
{{- with get $scheduling $key }}
{{ $key }}: {{ . }}
{{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" }}
{{- with get $scheduling $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- if ne .component "test" }}
topologySpreadConstraints:
{{- with $scheduling.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
{{- else }}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "forwardpass.selector" $.root | nindent 8 }}
        app.kubernetes.io/component: {{ $.component }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* "true" where there may be no pod at all. */}}
{{- define "forwardpass.toZero" -}}
{{- $scaling := .Values.autoscaling -}}
{{- if and (eq $scaling.kind "keda") (or (eq (int $scaling.minReplicas) 0) $scaling.keda.idleToZero) -}}true{{- end -}}
{{- end -}}

{{/* What the autoscaler counts: the servers' own pods, or the Tritons behind them. */}}
{{- define "forwardpass.scales" -}}
{{- if and (eq .Values.engine "triton") (eq .Values.triton.placement "deployment") -}}tritons{{- else -}}replicas{{- end -}}
{{- end -}}

{{/* Pods that hold the peak at the target; 0: none is stated. */}}
{{- define "forwardpass.atPeak" -}}
{{- $capacity := .Values.capacity -}}
{{- $full := 0.0 -}}
{{- range $kind, $rate := $capacity.peak -}}
{{- if not (hasKey $capacity.kinds $kind) -}}
{{- fail (printf "capacity.peak: there is no capacity.kinds of %q" $kind) -}}
{{- end -}}
{{- $full = addf $full (divf $rate (get $capacity.kinds $kind).requestsPerSecond) -}}
{{- end -}}
{{- divf $full .Values.autoscaling.targetSaturation | ceil | int -}}
{{- end -}}

{{/* The servers' pods among the series of a Prometheus, by their names: the Deployment's, and what replica sets add. */}}
{{- define "forwardpass.podsOfServers" -}}
{{- printf "namespace=%q,pod=~%q" .Release.Namespace (printf "%s-[a-z0-9]+(-[a-z0-9]+)?" (include "forwardpass.fullname" .)) -}}
{{- end -}}

{{/* The work that is asked of all pods together, of the hottest model: over the target it is how many are needed. Each server
  tells of the part of the Tritons' work that it may ask for: of Tritons it is the servers' mean, times their number. By the pods'
  names, so that it is the same whoever has them scraped, or if two do. */}}
{{- define "forwardpass.saturationQuery" -}}
{{- $where := include "forwardpass.podsOfServers" . -}}
{{- $each := printf "max by (pod, model, version) (forwardpass_saturation{%s})" $where -}}
{{- if eq (include "forwardpass.scales" .) "tritons" -}}
max(avg by (model, version) ({{ $each }})) * clamp_min(max(sum by (pod) (max by (pod, triton) (forwardpass_triton_up{ {{- $where -}} }))), 1)
{{- else -}}
max(sum by (model, version) ({{ $each }}))
{{- end -}}
{{- end -}}

{{/* Calls a second for which Envoy found no pod. */}}
{{- define "forwardpass.nobodyQuery" -}}
{{- $where := printf "namespace=%q,pod=~%q,envoy_cluster_name=\"forwardpass\"" .Release.Namespace (printf "%s-envoy-.*" (include "forwardpass.fullname" .)) -}}
sum(rate(envoy_cluster_upstream_cx_none_healthy{ {{- $where -}} }[1m]))
{{- end -}}

{{/* image, pvc, remote: the server reads and polls the repository itself; or fetched: Tritons read a folder, into which an
  init container brings it once. */}}
{{- define "forwardpass.models" -}}
{{- if and (eq .Values.modelRepository.kind "remote") (eq .Values.engine "triton") -}}fetched{{- else -}}{{ .Values.modelRepository.kind }}{{- end -}}
{{- end -}}

{{/* The models of a pod: who brings them, where they lie, where they are seen. */}}
{{- define "forwardpass.modelContainers" -}}
{{- $models := include "forwardpass.models" . -}}
{{- if eq $models "fetched" }}
initContainers:
  - name: models
    image: {{ include "forwardpass.image" (dict "image" .Values.image "root" .) }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
      - fetch
      - /models
      {{- range .Values.modelRepository.remote.urls }}
      - --model-repository={{ . }}
      {{- end }}
    env:
      {{- range $name, $value := default dict .Values.settings.remote }}
      - name: FORWARDPASS_REMOTE__{{ upper $name }}
        value: {{ include "forwardpass.settingText" $value | quote }}
      {{- end }}
      - name: FORWARDPASS_LOG__FORMAT
        value: {{ (default dict .Values.settings.log).format | default "text" }}
      {{- with .Values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with .Values.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- include "forwardpass.containerSecurity" . | nindent 6 }}
    resources:
      requests: { cpu: 100m, memory: 256Mi }
      limits: { cpu: "1", memory: 512Mi }
    volumeMounts:
      - name: models
        mountPath: /models
      - name: tmp
        mountPath: /tmp
{{- else if eq $models "image" }}
initContainers:
  - name: models
    image: {{ include "forwardpass.image" (dict "image" .Values.modelRepository.image "root" .) }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: ["cp", "-r", {{ printf "%s/." .Values.modelRepository.image.path | quote }}, "/models/"]
    securityContext:
      {{- include "forwardpass.containerSecurity" . | nindent 6 }}
    resources:
      requests: { cpu: 100m, memory: 64Mi }
      limits: { cpu: "1", memory: 256Mi }
    volumeMounts:
      - name: models
        mountPath: /models
{{- end }}
{{- end -}}

{{- define "forwardpass.modelVolume" -}}
{{- $repository := .Values.modelRepository -}}
{{- if eq (include "forwardpass.models" .) "fetched" -}}
- name: models
  emptyDir:
    sizeLimit: {{ $repository.remote.cacheSize }}
{{- else if eq $repository.kind "image" -}}
- name: models
  emptyDir: {}
{{- else if eq $repository.kind "pvc" -}}
- name: models
  persistentVolumeClaim:
    claimName: {{ $repository.pvc.existingClaim }}
    readOnly: true
{{- else -}}
- name: cache
  emptyDir:
    sizeLimit: {{ $repository.remote.cacheSize }}
{{- end }}
{{- end -}}

{{- define "forwardpass.modelMount" -}}
{{- $repository := .Values.modelRepository -}}
{{- if eq (include "forwardpass.models" .) "remote" -}}
- name: cache
  mountPath: /cache
{{- else -}}
- name: models
  mountPath: /models
  readOnly: true
  {{- if and (eq $repository.kind "pvc") $repository.pvc.subPath }}
  subPath: {{ $repository.pvc.subPath }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A Triton: (dict "root" $ "ports" (list HTTP GRPC METRICS)); with "outlives" it ends after that port of its pod is closed. */}}
{{- define "forwardpass.tritonContainer" -}}
{{- $triton := .root.Values.triton -}}
- name: triton
  image: {{ include "forwardpass.image" (dict "image" $triton.image "root" .root) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  # Its own default is IPv4 alone, and `ipv6:::` IPv6 alone: it is told by the address that the kubelet asks.
  command:
    - bash
    - -c
    - >-
      case "$POD_IP" in *:*) set -- --http-address=ipv6::: --grpc-address=[::] "$@" ;; esac; exec tritonserver "$@"
    - tritonserver
  env:
    - name: POD_IP
      valueFrom: { fieldRef: { fieldPath: status.podIP } }
    {{- with $triton.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  args:
    - --model-repository=/models
    - --http-port={{ index .ports 0 }}
    - --grpc-port={{ index .ports 1 }}
    - --metrics-port={{ index .ports 2 }}
    {{- with $triton.flags }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - { name: triton-http, containerPort: {{ index .ports 0 }} }
    - { name: triton-grpc, containerPort: {{ index .ports 1 }} }
    - { name: triton-metrics, containerPort: {{ index .ports 2 }} }
  startupProbe:
    httpGet: { path: /v2/health/ready, port: triton-http }
    {{- toYaml .root.Values.probes.startup | nindent 4 }}
  readinessProbe:
    httpGet: { path: /v2/health/ready, port: triton-http }
    {{- toYaml .root.Values.probes.readiness | nindent 4 }}
  livenessProbe:
    httpGet: { path: /v2/health/live, port: triton-http }
    {{- toYaml .root.Values.probes.liveness | nindent 4 }}
  {{- with .outlives }}
  lifecycle:
    preStop:
      exec: { command: ["bash", "-c", "while (exec 3<>/dev/tcp/127.0.0.1/{{ . }}) 2>/dev/null; do sleep 0.2; done"] }
  {{- end }}
  resources:
    {{- toYaml $triton.resources | nindent 4 }}
  securityContext:
    {{- include "forwardpass.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
    {{- include "forwardpass.modelMount" .root | nindent 4 }}
    - name: shm
      mountPath: /dev/shm
    {{- with $triton.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- /* A bucket's bound as the server exposes it: what is whole has a point. */ -}}
{{- define "forwardpass.bound" -}}
{{- $bound := toString . -}}
{{- $bound }}{{ if not (regexMatch "[.e]" $bound) }}.0{{ end }}
{{- end }}
