//! The CRDs and the admission policies of the chart, against a real API server. KUBECONFIG names it, with rights of an
//! administrator; the chart is installed in the namespace lockstep-system:
//!
//!     helm install lockstep charts/lockstep -n lockstep-system --create-namespace --set api.enabled=true
//!     KUBECONFIG=... cargo test --test apiserver

#![allow(
    clippy::expect_used,
    clippy::fn_params_excessive_bools,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test ends by panicking, and a table is as long as its cases"
)]

mod actions;
mod binding;
mod carry;
mod comparison;
mod crds;
mod deletion;
mod egress;
mod events;
mod figures;
mod gateway;
mod http;
mod lease;
mod lists;
mod memory;
mod notifications;
mod observe;
#[path = "../http/operator.rs"]
mod operator;
mod plugin;
mod policies;
#[path = "../crash/port.rs"]
mod port;
#[path = "../http/receiver.rs"]
mod receiver;
mod strangers;
mod support;
mod verbs;
mod working;
