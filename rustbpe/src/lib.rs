//! Byte pair encoding: learn merges from text, encode text, decode ids.
//!
//! `split` cuts text into chunks, `count` counts equal chunks, `train` turns the
//! counts into merges, `encode` applies the merges, `tokenizer` ties them
//! together and `store` keeps the result on disk. Only `python` knows Python;
//! none of it knows special tokens, conversations or models.

mod chunk;
mod count;
mod encode;
mod error;
mod split;
mod store;
mod tokenizer;
mod train;
mod unicode;

#[cfg(feature = "python")]
mod python;

pub use count::ChunkCounts;
pub use encode::Encoder;
pub use error::Error;
pub use split::{Splitter, GPT4_PATTERN};
pub use tokenizer::{Tokenizer, Trainer};
pub use train::learn_merges;
