#![doc = include_str!("ARCHITECTURE.md")]

pub mod api;
pub mod mutant;
pub mod protocol;

pub mod apiserver;
pub mod definition;

pub mod decide;
pub mod server;

pub mod cluster;
pub mod telemetry;

pub mod cli;
pub mod controllers;
pub mod gateway;
pub mod shim;
