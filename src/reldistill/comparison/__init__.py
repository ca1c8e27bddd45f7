"""Many runs under the same conditions: methods side by side, or settings over a grid."""
