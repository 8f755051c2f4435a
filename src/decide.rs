//! The brain: pure and total. Given what was observed and the time, it says what to do; it never does it.
//! No async, client, clock, randomness or environment in here.

pub mod schema;
