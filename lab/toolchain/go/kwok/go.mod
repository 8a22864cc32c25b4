// Pins what the lab builds; the packages to build are in lab/toolchain/recipes.py.
module infraflows.internal/lab/toolchain/kwok

go 1.26.0

require sigs.k8s.io/kwok v0.8.0
