//! GitOps with the controllers themselves, from a real Git repository: Flux's kustomize-controller and Argo CD, as
//! hack/gitops/controllers builds them, beside people who approve, hold and cancel, and beside Lockstep at work.
//!
//! KUBECONFIG names a cluster with the chart installed, with rights of an administrator. On a control plane without nodes the
//! operator of this build runs as a child process, and a kubelet plays shim, agent and gateway as in tests/crash. On a cluster with
//! nodes runs what is installed there, in real pods, with the image of the example agents. The controllers look at namespaces of
//! their own only; the kinds of Flux and Argo CD are made where they are missing, and stay.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    dead_code,
    reason = "a test ends by panicking, a story is as long as it is, and the crash tests use the rest of their files"
)]

#[path = "../crash/kubelet.rs"]
mod kubelet;
#[path = "../crash/operator.rs"]
mod operator;
#[path = "../crash/plane.rs"]
mod plane;
#[path = "../crash/port.rs"]
mod port;

mod argo;
mod argo_stories;
mod chart;
mod decisions;
mod example;
mod flux;
mod flux_stories;
mod ground;
mod process;
mod repository;
mod rights;
mod syncs;
mod team;
