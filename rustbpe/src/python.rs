//! The Python module: arguments, exceptions and the interpreter lock. Knows no algorithm.

use std::path::PathBuf;
use std::sync::OnceLock;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyIterator, PyList, PyString};

use crate::{Error, Splitter, Trainer, GPT4_PATTERN};

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Value(text) => PyValueError::new_err(text),
            Error::Split(text) => PyRuntimeError::new_err(text),
            Error::Io(error) => error.into(),
        }
    }
}

/// Return an `OSError` with `errno` and file name, as Python's own file functions do.
fn os_error(error: Error, path: &std::path::Path) -> PyErr {
    match error {
        Error::Io(error) if error.raw_os_error().is_some() => {
            PyOSError::new_err((error.raw_os_error(), error.to_string(), path.to_path_buf()))
        }
        other => other.into(),
    }
}

/// The thread pool does not survive a fork: a child works on its own thread.
fn threads_alive() -> bool {
    static POOL_OWNER: OnceLock<u32> = OnceLock::new();
    let process = std::process::id();
    *POOL_OWNER.get_or_init(|| process) == process
}

/// Reads an iterable of `str`, without copying the text of any.
struct Texts<'py> {
    items: Bound<'py, PyIterator>,
    read: usize,
}

impl<'py> Texts<'py> {
    fn new(texts: &Bound<'py, PyAny>) -> PyResult<Self> {
        if texts.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err("texts is one str; give an iterable of str, such as [text]"));
        }
        Ok(Texts { items: texts.try_iter()?, read: 0 })
    }

    /// Return texts of about `limit_bytes` together; none at the end.
    fn batch(&mut self, limit_bytes: usize) -> PyResult<Vec<PyBackedStr>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < limit_bytes {
            let Some(item) = self.items.next().transpose()? else { break };
            let text = item.cast_into::<PyString>().map_err(|error| {
                let found = error.into_inner().get_type();
                let found = found.name().map_or_else(|_| "?".to_owned(), |name| name.to_string());
                PyTypeError::new_err(format!("texts: item {} is {found}, not str", self.read))
            })?;
            let text = PyBackedStr::try_from(text)?;
            bytes += text.len() + 64; // empty texts have a cost too
            batch.push(text);
            self.read += 1;
        }
        Ok(batch)
    }
}

/// Byte pair encoding: ranked tokens and the pattern that cuts text into chunks.
#[pyclass(frozen, module = "nanochat_rustbpe")]
struct Tokenizer(crate::Tokenizer);

#[pymethods]
impl Tokenizer {
    #[staticmethod]
    #[pyo3(signature = (texts, vocab_size, *, pattern = GPT4_PATTERN, batch_bytes = 8 << 20))]
    fn train(
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        vocab_size: i64,
        pattern: &str,
        batch_bytes: usize,
    ) -> PyResult<Self> {
        let mut trainer = Trainer::new(vocab_size, pattern)?;
        let mut texts = Texts::new(texts)?;
        loop {
            let batch = texts.batch(batch_bytes.max(1))?;
            if batch.is_empty() {
                break;
            }
            py.detach(|| trainer.add(&batch, threads_alive()))?;
            py.check_signals()?;
        }
        Ok(Tokenizer(py.detach(|| trainer.finish(threads_alive()))?))
    }

    #[staticmethod]
    #[pyo3(signature = (ranks, *, pattern = GPT4_PATTERN))]
    fn from_ranks(py: Python<'_>, ranks: Vec<(Bound<'_, PyBytes>, u32)>, pattern: &str) -> PyResult<Self> {
        let mut ranks: Vec<(u32, Vec<u8>)> =
            ranks.into_iter().map(|(token, rank)| (rank, token.as_bytes().to_vec())).collect();
        ranks.sort_unstable();
        for (expected, (rank, _)) in ranks.iter().enumerate() {
            if *rank as usize != expected {
                return Err(PyValueError::new_err(format!("ranks: {rank} stands where {expected} is due")));
            }
        }
        let tokens = ranks.into_iter().map(|(_, token)| token).collect();
        Ok(Tokenizer(py.detach(|| crate::Tokenizer::new(tokens, pattern))?))
    }

    #[getter]
    fn pattern(&self) -> &str {
        self.0.pattern()
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn encode_ordinary(&self, py: Python<'_>, text: PyBackedStr) -> PyResult<Vec<u32>> {
        Ok(py.detach(|| self.0.encode(&text))?)
    }

    fn encode_batch(&self, py: Python<'_>, texts: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<u32>>> {
        let batch = Texts::new(texts)?.batch(usize::MAX)?;
        Ok(py.detach(|| self.0.encode_batch(&batch, threads_alive()))?)
    }

    #[pyo3(signature = (texts, *, first = None))]
    fn encode_packed<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        first: Option<u16>,
    ) -> PyResult<(Bound<'py, PyBytes>, Vec<usize>)> {
        let batch = Texts::new(texts)?.batch(usize::MAX)?;
        let (ids, counts) = py.detach(|| self.0.encode_packed(&batch, first, threads_alive()))?;
        Ok((PyBytes::new(py, &ids), counts))
    }

    fn decode_bytes<'py>(&self, py: Python<'py>, ids: Vec<u32>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.0.decode(&ids)?))
    }

    fn mergeable_ranks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.0.tokens().enumerate().map(|(rank, token)| (PyBytes::new(py, token), rank)))
    }

    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| self.0.save(&path)).map_err(|error| os_error(error, &path))
    }

    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let loaded = py.detach(|| crate::Tokenizer::load(&path));
        Ok(Tokenizer(loaded.map_err(|error| os_error(error, &path))?))
    }

    fn __repr__(&self) -> String {
        format!("Tokenizer(vocab_size={})", self.0.vocab_size())
    }
}

/// Return the chunks that `pattern` cuts `text` into.
#[pyfunction]
#[pyo3(signature = (text, *, pattern = GPT4_PATTERN))]
fn split<'t>(text: &'t str, pattern: &str) -> PyResult<Vec<&'t str>> {
    let mut chunks = Vec::new();
    Splitter::new(pattern)?.split(text, |start, end| chunks.push(&text[start..end]))?;
    Ok(chunks)
}

#[pymodule]
mod nanochat_rustbpe {
    #[pymodule_export]
    use super::{split, Tokenizer};

    #[pymodule_export]
    const GPT4_PATTERN: &str = crate::GPT4_PATTERN;
}
