//! A whole installation in one thread and in virtual time: an API server in memory, operators that run the real `decide`, a
//! gateway, Jobs, pods, people, and everything that may go wrong with them. One seed is one story, always the same.
//!
//! Read `world` (time and requests), `server` (that of `src/apiserver`), `operator` and `observe` (how a pass sees and acts), `gateway`
//! and `kubelet` (an attempt from both ends), `turns` (slots), `people` and `control` (who act), `workload` and `maker`
//! (what is run), `judge` (what must hold; with `reading` and `course`, what a run's own definition asks of it), `run`.

pub mod chance;
pub mod control;
pub mod gateway;
pub mod judge;
pub mod kubelet;
pub mod maker;
pub mod observe;
pub mod operator;
pub mod people;
pub mod run;
pub mod search;
pub mod server;
pub mod turns;
pub mod workload;
pub mod world;
