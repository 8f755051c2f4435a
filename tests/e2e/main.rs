//! Lockstep as its users have it: installed in a real cluster, with agents in real pods. KUBECONFIG names the cluster,
//! with rights of an administrator; the image of the example agents is in its node:
//!
//!     make install demo-agents && eval "$(hack/devcluster/devcluster env)"
//!     RUST_TEST_THREADS=4 cargo test --test e2e

mod causes;
mod claims;
mod courses;
mod faults;
mod flow;
mod proof;
mod restart;
mod support;
