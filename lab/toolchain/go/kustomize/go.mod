// Pins what the lab builds; the packages to build are in lab/toolchain/recipes.py.
module infraflows.internal/lab/toolchain/kustomize

go 1.26.0

require sigs.k8s.io/kustomize/kustomize/v5 v5.8.1
