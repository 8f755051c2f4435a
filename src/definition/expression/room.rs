//! How much expressions may give together. A text may name a large document as often as it likes: what that comes to is
//! counted before anything is copied, and stops at the bound.

use std::io::{self, Write};

use serde_json::Value;

/// What is left of a number of bytes; nothing, once more was wanted.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    left: Option<usize>,
    bound: usize,
}

impl Room {
    pub fn of(bound: usize) -> Self {
        Self { left: Some(bound), bound }
    }

    /// Whether more was wanted than there is.
    pub fn is_spent(&self) -> bool {
        self.left.is_none()
    }

    /// Takes what a value is as a text: a string itself, anything else its JSON.
    pub(super) fn take(&mut self, value: &Value) -> Result<(), String> {
        match value {
            Value::String(text) => self.take_bytes(text.len()),
            other => serde_json::to_writer(&mut *self, other).map_err(|_| self.spent()),
        }
    }

    pub(super) fn take_bytes(&mut self, bytes: usize) -> Result<(), String> {
        self.left = self.left.and_then(|left| left.checked_sub(bytes));
        if self.is_spent() { Err(self.spent()) } else { Ok(()) }
    }

    fn spent(&self) -> String {
        format!("gives more than {} bytes, at most {} are allowed", self.bound, self.bound)
    }
}

/// Counts, and keeps nothing.
impl Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take_bytes(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
