//! End-to-end tests over the real binaries: clicks in, preliminary out, reconciled out, and no kill loses or doubles one.
