//! The tokenizer as a JSON file: `{"version": 1, "pattern": ..., "tokens": [hex, ...]}`.
//!
//! Knows nothing of special tokens or of the application's own file.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::{json, Value};

use crate::error::Error;
use crate::tokenizer::Tokenizer;

impl Tokenizer {
    /// Replace `path`; after a crash it holds the old content or the new one.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let tokens: Vec<String> = self.tokens().map(to_hex).collect();
        let value = json!({"version": 1, "pattern": self.pattern(), "tokens": tokens});
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let written = write_synced(&temporary, value.to_string().as_bytes())
            .and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary); // the first error is the one to report
        }
        Ok(written?)
    }

    /// Read what `save` wrote.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path)?;
        Self::from_json(&text).map_err(|error| match error {
            Error::Value(reason) => Error::Value(format!("`{}`: {reason}", path.display())),
            other => other,
        })
    }

    fn from_json(text: &str) -> Result<Self, Error> {
        let bad = |reason: &str| Error::Value(reason.to_owned());
        let value: Value =
            serde_json::from_str(text).map_err(|error| Error::Value(format!("not JSON: {error}")))?;
        if value["version"] != 1 {
            return Err(bad("`version` is not 1"));
        }
        let pattern = value["pattern"].as_str().ok_or_else(|| bad("`pattern` is missing"))?;
        let tokens = value["tokens"].as_array().ok_or_else(|| bad("`tokens` is missing"))?;
        let tokens = tokens.iter().enumerate().map(|(id, token)| {
            let token = token.as_str().and_then(from_hex);
            token.ok_or_else(|| Error::Value(format!("`tokens[{id}]` is not hexadecimal")))
        });
        Tokenizer::new(tokens.collect::<Result<_, _>>()?, pattern)
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|value| value as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}
