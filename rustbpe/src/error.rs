//! What can go wrong. Knows nothing of Python's exceptions.

use std::fmt;

/// Why a tokenizer could not be made, read or used.
#[derive(Debug)]
pub enum Error {
    /// A value the caller gave is out of range or malformed.
    Value(String),
    /// The regular expression gave up on a text.
    Split(String),
    /// The operating system refused a file operation.
    Io(std::io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Value(text) | Error::Split(text) => f.write_str(text),
            Error::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Error::Io(error)
    }
}
