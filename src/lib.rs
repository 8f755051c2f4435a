#![doc = include_str!("ARCHITECTURE.md")]
#![cfg_attr(
    not(test),
    warn(
        clippy::allow_attributes,
        clippy::disallowed_macros,
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "what ships says where it reads a clock, sleeps or draws lots, see .clippy.toml; and its waivers go when they waive nothing"
    )
)]

#[expect(clippy::disallowed_macros, reason = "the derives of the kinds write their schemas with it")]
pub mod api;
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
#[expect(clippy::disallowed_macros, reason = "the derives of what it takes and gives write their schemas with it")]
pub mod http;
pub mod prompt;
pub mod shim;

#[expect(clippy::disallowed_macros, reason = "the API server in this process takes objects as JSON")]
pub mod dev;
