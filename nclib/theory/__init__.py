"""The theory that is computed: closed forms, the exact flow, bounds, complexities, global optima."""
