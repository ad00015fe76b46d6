//! Embedding: texts become vectors, near to each other where the texts mean something alike. An [`Embedder`] does it;
//! [`LocalEmbedder`] in the process, by the letters only, [`OpenAiEmbedder`] by asking a service.

mod local;
mod openai;
pub(super) mod paths;

use std::fmt;

use async_trait::async_trait;

pub use local::LocalEmbedder;
pub use openai::{OpenAiEmbedder, OpenAiSettings};

/// The longest vector that is kept.
pub const MAX_DIMS: usize = 16_384;

/// Makes vectors of texts.
#[async_trait]
pub trait Embedder: fmt::Debug + Send + Sync {
    /// What is stored beside the vectors. Vectors of the same name can be compared; give a new name to whatever changes
    /// what texts become, and the old vectors are ignored.
    fn model(&self) -> &str;

    /// A vector for each text, in their order, all of the same number of dimensions. Called outside of transactions;
    /// cancel-safe.
    ///
    /// # Errors
    /// [`EmbedError`]; then nothing is stored.
    async fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedError>;
}

/// Why there are no vectors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// These texts cannot be embedded: trying again is no use.
    #[error("{0}")]
    Refused(String),
    /// Something is wrong with the embedder, now or until its settings change.
    #[error("{0}")]
    Unavailable(String),
}

/// Asks an embedder, checks its answer, and gives each vector the length 1.
pub(super) async fn unit_vectors(embedder: &dyn Embedder, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedError> {
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    let wrong = |text: String| EmbedError::Unavailable(format!("{}: {text}", embedder.model()));
    let mut vectors = embedder.embed(texts).await?;
    if vectors.len() != texts.len() {
        return Err(wrong(format!("{} vectors for {} texts", vectors.len(), texts.len())));
    }
    let dims = vectors.first().map_or(0, Vec::len);
    if !(1..=MAX_DIMS).contains(&dims) {
        return Err(wrong(format!("a vector of {dims} dimensions; there may be 1 to {MAX_DIMS}")));
    }
    for vector in &mut vectors {
        if vector.len() != dims {
            return Err(wrong(format!("vectors of {dims} and of {} dimensions in one answer", vector.len())));
        }
        if !to_unit(vector) {
            return Err(wrong("a vector that is not finite".to_owned()));
        }
    }
    Ok(vectors)
}

/// Gives a vector the length 1; one of zeros stays as it is. False when it holds what is no number.
fn to_unit(vector: &mut [f32]) -> bool {
    let length = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    if !length.is_finite() {
        return false;
    }
    if length > 0.0 {
        for number in vector {
            *number = (f64::from(*number) / length) as f32;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed(Vec<Vec<f32>>);

    #[async_trait]
    impl Embedder for Fixed {
        fn model(&self) -> &str {
            "fixed"
        }

        async fn embed(&self, _: &[String]) -> Result<Vec<Vec<f32>>, EmbedError> {
            Ok(self.0.clone())
        }
    }

    #[tokio::test]
    async fn vectors_get_the_length_one_and_bad_ones_are_refused() {
        let texts = ["a".to_owned(), "b".to_owned()];
        let ask = async |vectors: &[&[f32]]| {
            let fixed = Fixed(vectors.iter().map(|vector| vector.to_vec()).collect());
            unit_vectors(&fixed, &texts).await
        };
        assert_eq!(ask(&[&[3.0, 4.0], &[0.0, 0.0]]).await, Ok(vec![vec![0.6, 0.8], vec![0.0, 0.0]]));
        assert_eq!(ask(&[&[f32::MAX, 0.0], &[0.0, -2.0]]).await, Ok(vec![vec![1.0, 0.0], vec![0.0, -1.0]]));
        let bad: [&[&[f32]]; 5] =
            [&[&[1.0]], &[&[1.0], &[1.0, 2.0]], &[&[], &[]], &[&[f32::NAN], &[1.0]], &[&[f32::INFINITY], &[1.0]]];
        for vectors in bad {
            assert!(matches!(ask(vectors).await, Err(EmbedError::Unavailable(_))), "{vectors:?}");
        }
    }
}
