{{/* Name of the operator's objects. Short enough for a suffix: names of Services have at most 63 characters. */}}
{{- define "finetune-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "finetune-operator" .Release.Name -}}
{{- .Release.Name | trunc 54 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-finetune-operator" .Release.Name | trunc 54 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end -}}

{{/* How metrics are offered: config.metrics, as the operator has it. */}}
{{- define "finetune-operator.metrics" -}}
{{- (.Values.config | default dict).metrics | default "Open" -}}
{{- end -}}

{{/* What the names of users' roles and policies begin with: `finetune` in the release `finetune-operator`. */}}
{{- define "finetune-operator.prefix" -}}
{{- include "finetune-operator.fullname" . | trimSuffix "-operator" -}}
{{- end -}}

{{- define "finetune-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "finetune-operator.fullname" . -}}
{{- else -}}
{{- fail "serviceAccount.create is false: name the operator's account in serviceAccount.name" -}}
{{- end -}}
{{- end -}}

{{/* Labels that Helm's users expect on every object. */}}
{{- define "finetune-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels that say what an object is part of. Arguments: [root, component]. */}}
{{- define "finetune-operator.component" -}}
app.kubernetes.io/name: finetune-operator
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/part-of: finetune-operator
{{- end -}}

{{/*
What selects the operator's pods. The release is not in it: names that the operator itself has fixed (its Lease, its door)
allow one release a namespace, and with the selector of the manifests their Deployment can be taken over.
*/}}
{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: finetune-operator
app.kubernetes.io/component: operator
{{- end -}}

{{/* Reference of an image: [root, image]. */}}
{{- define "finetune-operator.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $tag := $image.tag | default (ternary "" $root.Chart.AppVersion (ne $image.digest "")) -}}
{{- $image.repository -}}{{ with $tag }}:{{ . }}{{ end }}{{ with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* A setting as the operator reads it from its environment: text, a list with spaces between, else JSON. */}}
{{- define "finetune-operator.setting" -}}
{{- if kindIs "string" . -}}
{{- . -}}
{{- else if and (kindIs "slice" .) (kindIs "map" (first .)) -}}
{{- toJson . -}}
{{- else if kindIs "slice" . -}}
{{- join " " . -}}
{{- else -}}
{{- toJson . -}}
{{- end -}}
{{- end -}}

{{/* The objects of a file under files/, which are copies from manifests/, as a JSON list: [root, path]. */}}
{{- define "finetune-operator.objects" -}}
{{- $objects := list -}}
{{- range regexSplit "(?m)^---\\s*$" ((index . 0).Files.Get (index . 1)) -1 -}}
{{- with fromYaml . -}}
{{- $objects = append $objects . -}}
{{- end -}}
{{- end -}}
{{- toJson $objects -}}
{{- end -}}

{{/* The rules of a role of manifests/rbac: [root, path, kind, name]. */}}
{{- define "finetune-operator.rules" -}}
{{- $kind := index . 2 -}}
{{- $name := index . 3 -}}
{{- $rules := list -}}
{{- range include "finetune-operator.objects" (list (index . 0) (index . 1)) | fromJsonArray -}}
{{- if and (eq .kind $kind) (eq .metadata.name $name) -}}
{{- $rules = .rules -}}
{{- end -}}
{{- end -}}
{{- $rules | required (printf "%s has no %s %s" (index . 1) $kind $name) | toYaml -}}
{{- end -}}

{{/* An object of manifests/ as one of this release's: [root, object, whether it is kept when the release goes]. */}}
{{- define "finetune-operator.adopted" -}}
{{- $root := index . 0 -}}
{{- $object := index . 1 -}}
{{- $metadata := $object.metadata -}}
{{- $labels := include "finetune-operator.labels" $root | fromYaml -}}
{{- $_ := set $metadata "labels" (merge dict $labels ($metadata.labels | default dict)) -}}
{{- if index . 2 -}}
{{- $keep := dict "helm.sh/resource-policy" "keep" -}}
{{- $_ := set $metadata "annotations" (merge dict $keep ($metadata.annotations | default dict)) -}}
{{- end -}}
{{- toYaml $object -}}
{{- end -}}

{{/* Whom a binding gives its role to. */}}
{{- define "finetune-operator.subjects" -}}
- kind: ServiceAccount
  name: {{ include "finetune-operator.serviceAccount" . | quote }}
  namespace: {{ include "finetune-operator.namespace" . | quote }}
{{- end -}}

{{/* An object of manifests/monitoring as one of this release's: [root, object, labels that a Prometheus selects by]. */}}
{{- define "finetune-operator.monitoring" -}}
{{- $root := index . 0 -}}
{{- $metadata := (index . 1).metadata -}}
{{- $name := $metadata.name | replace "finetune-" (printf "%s-" (include "finetune-operator.prefix" $root)) -}}
{{- $_ := set $metadata "name" (ternary (include "finetune-operator.fullname" $root) $name (eq $metadata.name "finetune-operator")) -}}
{{- $_ := set $metadata "namespace" (include "finetune-operator.namespace" $root) -}}
{{- $_ := set $metadata "labels" (index . 2) }}
---
{{ include "finetune-operator.adopted" (list $root (index . 1) false) }}
{{- end -}}
