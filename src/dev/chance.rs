//! What nobody else knows: tokens, and what makes the UIDs of one folder others than those of another.

/// 128 random bits. A machine without chance gives a token that is good for nothing, and says so in time.
pub fn hex() -> String {
    let half = || getrandom::u64().unwrap_or_default();
    format!("{:016x}{:016x}", half(), half())
}
