//! The embedder in the process: feature hashing. It is lexical: texts are near when they share words or parts of words,
//! whatever they mean. The same text gives the same vector everywhere and always.

use std::collections::BTreeMap;

use async_trait::async_trait;
use xxhash_rust::xxh3::xxh3_64;

use super::{EmbedError, Embedder};

/// The dimensions unless somebody says otherwise.
const DIMS: usize = 512;
/// What three letters in a row count for, where the word as a whole counts for 1.
const PART: f32 = 0.5;
/// Words of fewer bytes are mostly articles and the like, whatever the language: they count for less, and have no parts.
const SHORT: usize = 4;
const SHORT_WORD: f32 = 0.3;

/// Words and their parts, hashed into a fixed number of dimensions.
#[derive(Debug, Clone)]
pub struct LocalEmbedder {
    dims: usize,
    model: String,
}

impl Default for LocalEmbedder {
    fn default() -> Self {
        LocalEmbedder::new(DIMS)
    }
}

impl LocalEmbedder {
    /// Vectors of so many dimensions; 0: the default.
    pub fn new(dims: usize) -> LocalEmbedder {
        let dims = if dims == 0 { DIMS } else { dims };
        // The number is that of the way texts become features: it grows when that changes.
        LocalEmbedder { dims, model: format!("local:hash-1:{dims}") }
    }

    fn vector(&self, text: &str) -> Vec<f32> {
        let mut vector = vec![0.0_f32; self.dims];
        for (feature, (weight, count)) in features(text) {
            // What is said ten times is not ten times as important.
            let value = weight * (1.0 + (count as f32).ln());
            let place = usize::try_from(feature >> 1).unwrap_or(usize::MAX) % self.dims;
            // With a sign, so that features that meet in a dimension cancel out rather than add up, on the average.
            vector[place] += if feature & 1 == 0 { value } else { -value };
        }
        vector
    }
}

/// The hashes of words and of three letters in a row, with weight and count; sorted, so that sums come out the same.
fn features(text: &str) -> BTreeMap<u64, (f32, u32)> {
    let mut features: BTreeMap<u64, (f32, u32)> = BTreeMap::new();
    let mut add = |feature: &[u8], weight: f32| {
        features.entry(xxh3_64(feature)).or_insert((weight, 0)).1 += 1;
    };
    let text = text.to_lowercase();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        if word.len() < SHORT {
            add(word.as_bytes(), SHORT_WORD);
            continue;
        }
        add(word.as_bytes(), 1.0);
        // With the ends marked: `^ca`, `cat`, `at$`.
        let marked: Vec<char> = std::iter::once('^').chain(word.chars()).chain(std::iter::once('$')).collect();
        for part in marked.windows(3) {
            let part: String = part.iter().collect();
            add(part.as_bytes(), PART);
        }
    }
    features
}

#[async_trait]
impl Embedder for LocalEmbedder {
    fn model(&self) -> &str {
        &self.model
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedError> {
        Ok(texts.iter().map(|text| self.vector(text)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::unit_vectors;
    use super::*;

    async fn vectors(texts: &[&str]) -> Vec<Vec<f32>> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        unit_vectors(&LocalEmbedder::default(), &texts).await.expect("cannot fail")
    }

    fn nearness(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[tokio::test]
    async fn texts_that_share_words_are_near() {
        let found = vectors(&[
            "I like espresso and other coffees",
            "which coffee does the user like?",
            "the invoice is due on Monday",
        ])
        .await;
        let (alike, other) = (nearness(&found[0], &found[1]), nearness(&found[2], &found[1]));
        assert!(alike > 0.3 && other < 0.15, "{alike} {other}");
    }

    #[tokio::test]
    async fn the_same_text_is_the_same_vector_for_good() {
        let found = vectors(&["Hello, world", "hello WORLD!", "", "日本語のテキスト"]).await;
        assert_eq!(found[0], found[1]);
        assert!(found[2].iter().all(|number| *number == 0.0));
        assert!((nearness(&found[3], &found[3]) - 1.0).abs() < 1e-5);
        // What is stored must be found by every later build: a change here needs a new name of the model.
        let words: Vec<usize> = (0..found[0].len()).filter(|at| found[0][*at].abs() > 0.4).collect();
        assert_eq!(words, WORDS);
    }

    /// Where `hello` and `world` are.
    const WORDS: [usize; 2] = [126, 223];
}
