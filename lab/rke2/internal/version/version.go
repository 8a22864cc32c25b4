// Package version holds what the build says this distribution is.
//
// It promises an honest label: whoever asks for the version is told that this is the lab's distribution.
package version

// Version is set by the linker, in RKE2's own form.
var Version = "v1.36.3+rke2r1"

// Distribution is appended to every version that people read.
const Distribution = "Infraflows lab distribution"

// Program names the API prefix, the headers and the secrets, as RKE2 does.
const Program = "rke2"
