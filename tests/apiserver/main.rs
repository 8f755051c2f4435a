//! The CRDs and the admission policies of the chart, against a real API server. KUBECONFIG names it, with rights of an
//! administrator; the chart is installed in the namespace lockstep-system:
//!
//!     helm install lockstep charts/lockstep -n lockstep-system --create-namespace
//!     KUBECONFIG=... cargo test --test apiserver

#![allow(
    clippy::expect_used,
    clippy::fn_params_excessive_bools,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test ends by panicking, and a table is as long as its cases"
)]

mod binding;
mod comparison;
mod crds;
mod gateway;
mod lease;
mod observe;
mod plugin;
mod policies;
mod strangers;
mod support;
