//! Sound between the trunk and the model: the same bytes where both speak the same law, else PCM at 24 kHz.

use base64ct::{Base64, Encoding};
use bytes::Bytes;

use crate::media::g711::Law;
use crate::media::resample::{Downsampler, Upsampler};

/// Converts both directions of one call.
#[derive(Debug, Clone)]
pub enum Converter {
    /// The model speaks the law of the trunk.
    Untouched,
    /// The model speaks 16-bit little-endian PCM at 24 kHz.
    Pcm24k {
        /// The law of the trunk.
        law: Law,
        /// Towards the model.
        up: Box<Upsampler>,
        /// From the model.
        down: Box<Downsampler>,
        /// A byte that was half a sample.
        odd: Option<u8>,
    },
}

impl Converter {
    /// For a model that speaks PCM.
    pub fn pcm_24k(law: Law) -> Converter {
        Converter::Pcm24k { law, up: Box::default(), down: Box::default(), odd: None }
    }

    /// The caller's sound, as the base64 that goes into a message.
    pub fn to_model(&mut self, audio: &[u8]) -> String {
        let mut text = String::new();
        self.write_to_model(audio, &mut text);
        text
    }

    /// As `to_model`, behind what the text holds already: fifty times a second, so without a text of its own.
    pub fn write_to_model(&mut self, audio: &[u8], text: &mut String) {
        match self {
            Converter::Untouched => push_base64(audio, text),
            Converter::Pcm24k { law, up, .. } => {
                let samples = up.process(audio.iter().map(|byte| law.decode(*byte)));
                let bytes: Vec<u8> = samples.into_iter().flat_map(i16::to_le_bytes).collect();
                push_base64(&bytes, text);
            }
        }
    }

    /// The model's sound, from the base64 of a message; nothing if that is damaged.
    pub fn from_model(&mut self, base64: &str) -> Option<Bytes> {
        let bytes = Base64::decode_vec(base64).ok()?;
        match self {
            Converter::Untouched => Some(bytes.into()),
            Converter::Pcm24k { law, down, odd, .. } => {
                let mut bytes: Vec<u8> = odd.take().into_iter().chain(bytes).collect();
                if bytes.len() % 2 == 1 {
                    *odd = bytes.pop();
                }
                let samples =
                    bytes.chunks_exact(2).filter_map(|pair| pair.first_chunk().copied()).map(i16::from_le_bytes);
                Some(down.process(samples).into_iter().map(|sample| law.encode(sample)).collect())
            }
        }
    }
}

fn push_base64(bytes: &[u8], text: &mut String) {
    let mut buffer = [0; 256];
    // Three bytes are four characters, so that only the last piece may need padding.
    for piece in bytes.chunks(192) {
        text.push_str(Base64::encode(piece, &mut buffer).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_voice_survives_the_way_to_a_pcm_model_and_back() {
        let law = Law::A;
        let voice: Vec<u8> = (0..1600).map(|n| law.encode((8000.0 * (f64::from(n) * 0.3).sin()) as i16)).collect();
        let mut converter = Converter::pcm_24k(law);
        let at_24k = Base64::decode_vec(&converter.to_model(&voice)).unwrap();
        assert_eq!(at_24k.len(), voice.len() * 6);
        // In odd pieces, as they come.
        let back: Vec<u8> =
            at_24k.chunks(777).flat_map(|piece| converter.from_model(&Base64::encode_string(piece)).unwrap()).collect();
        assert_eq!(back.len(), voice.len());
        // Both filters together are 95 taps late, which is 31.7 samples at 8 kHz.
        let error: f64 = (200..1500)
            .map(|n| {
                (f64::from(law.decode(back[n])) - 8000.0 * ((n as f64 - 95.0 / 3.0 + 1.0 / 3.0 * 2.0) * 0.3).sin())
                    .powi(2)
            })
            .sum::<f64>()
            / 1300.0;
        assert!(error.sqrt() < 400.0, "root mean square error {:.0} of 8000", error.sqrt());
    }

    proptest! {
        #[test]
        fn untouched_means_the_same_bytes(audio in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut converter = Converter::Untouched;
            let text = converter.to_model(&audio);
            prop_assert_eq!(converter.from_model(&text).unwrap().to_vec(), audio);
        }

        #[test]
        fn damaged_text_gives_nothing(text in "[ -~]{0,40}") {
            for mut converter in [Converter::Untouched, Converter::pcm_24k(Law::Mu)] {
                let _ = converter.from_model(&text);
            }
        }
    }
}
