//! What the relay itself says: files of speech by name and language, and tones where there is no file.
//!
//! A file is raw A-law at 8 kHz without any header, named `<name>.<language>.alaw`, as in `apology.rw.alaw`.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use ihuza_core::locale::{ALL, Locale};

use crate::config::Config;
use crate::media::g711::Law;

/// Two minutes; nobody listens to more.
const MOST_BYTES: u64 = 120 * 8000;

/// What is said, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Announcement {
    /// The model is gone and the call ends.
    Apology,
    /// A tool takes its time.
    Filler,
    /// The call is recorded. Without a file of it nothing is recorded: a tone tells nobody anything.
    Consent,
}

const ANNOUNCEMENTS: [Announcement; 3] = [Announcement::Apology, Announcement::Filler, Announcement::Consent];

impl Announcement {
    /// The name of its file, and of its item in the playout.
    pub fn as_str(self) -> &'static str {
        match self {
            Announcement::Apology => "apology",
            Announcement::Filler => "filler",
            Announcement::Consent => "consent",
        }
    }
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Announcements {
    spoken: HashMap<(Announcement, Locale), Vec<u8>>,
}

impl Announcements {
    /// All that the settings ask for. What a trunk that records has to announce must be there in the language of each of
    /// its numbers.
    pub fn of(config: &Config) -> io::Result<Announcements> {
        let Some(directory) = &config.media.announcements else { return Ok(Announcements::default()) };
        let found = Announcements::read(directory)?;
        for trunk in config.trunks.iter().filter(|trunk| trunk.record) {
            for did in &trunk.dids {
                let locale = did.locale.0;
                if !found.spoken.contains_key(&(Announcement::Consent, locale)) {
                    return Err(io::Error::other(format!(
                        "trunk {} records, and there is no consent.{}.alaw to say so: add it, or leave record out",
                        trunk.name,
                        locale.as_str()
                    )));
                }
            }
        }
        Ok(found)
    }

    /// Reads a directory; what is missing there is a tone, what is empty or too long an error.
    pub fn read(directory: &Path) -> io::Result<Announcements> {
        let mut spoken = HashMap::new();
        for announcement in ANNOUNCEMENTS {
            for locale in ALL {
                let path = directory.join(format!("{}.{}.alaw", announcement.as_str(), locale.as_str()));
                if !path.exists() {
                    continue;
                }
                let length = std::fs::metadata(&path)?.len();
                if length == 0 {
                    // Played, it would count as heard.
                    let problem = format!("{} is empty: nothing would be said", path.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
                }
                if length > MOST_BYTES {
                    let problem =
                        format!("{} has {length} bytes, {MOST_BYTES} are allowed: is it raw A-law?", path.display());
                    return Err(io::Error::other(problem));
                }
                spoken.insert((announcement, locale), std::fs::read(&path)?);
            }
        }
        Ok(Announcements { spoken })
    }

    /// The sound, in the law of a call.
    pub fn sound(&self, announcement: Announcement, locale: Locale, law: Law) -> Vec<u8> {
        self.spoken(announcement, locale, law).unwrap_or_else(|| match announcement {
            Announcement::Apology | Announcement::Consent => congestion_tone(law),
            Announcement::Filler => comfort_tone(law),
        })
    }

    /// The words, in the law of a call, if there is a file of them.
    pub fn spoken(&self, announcement: Announcement, locale: Locale, law: Law) -> Option<Vec<u8>> {
        let spoken = self.spoken.get(&(announcement, locale))?;
        Some(match law {
            Law::A => spoken.clone(),
            Law::Mu => spoken.iter().map(|byte| Law::Mu.encode(Law::A.decode(*byte))).collect(),
        })
    }
}

/// Two seconds of the tone by which a telephone says that it cannot be: 425 Hz, a quarter of a second on and off.
fn congestion_tone(law: Law) -> Vec<u8> {
    tone(law, 16_000, |n| if n / 2000 % 2 == 0 { 4000.0 } else { 0.0 })
}

/// A fifth of a second, quiet: somebody is still there.
fn comfort_tone(law: Law) -> Vec<u8> {
    tone(law, 1600, |n| 800.0 * (n as f32 / 1600.0 * std::f32::consts::PI).sin())
}

fn tone(law: Law, samples: usize, level: impl Fn(usize) -> f32) -> Vec<u8> {
    let wave = |n: usize| (level(n) * (n as f32 * 425.0 / 8000.0 * std::f32::consts::TAU).sin()) as i16;
    (0..samples).map(|n| law.encode(wave(n))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trunk_that_records_must_be_able_to_say_so_in_each_of_its_languages() {
        let directory = std::env::temp_dir().join(format!("ihuza-relay-consents-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let text = include_str!("../../relay.example.toml").replace("codecs =", "record = true\ncodecs =");
        let missing = Config::parse(&text).unwrap_err().to_string();
        assert!(missing.contains("recording.directory"), "{missing}");
        let recordings = directory.display();
        let mut config = Config::parse(&format!("{text}\n[recording]\ndirectory = '{recordings}'")).unwrap();
        config.media.announcements = Some(directory.clone());
        std::fs::write(directory.join("consent.rw.alaw"), [0x41]).unwrap();
        let without_french = Announcements::of(&config).unwrap_err().to_string();
        std::fs::write(directory.join("consent.fr.alaw"), [0x42]).unwrap();
        let sound = Announcements::of(&config).unwrap().spoken(Announcement::Consent, Locale::Fr, Law::A);
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(without_french.contains("consent.fr.alaw"), "{without_french}");
        assert_eq!(sound, Some(vec![0x42]));
        config.trunks[0].record = false;
        assert!(Announcements::of(&config).is_ok(), "whoever does not record need not say so");
    }

    #[test]
    fn a_file_is_spoken_in_the_law_of_the_call_and_a_missing_one_is_a_tone() {
        let directory = std::env::temp_dir().join(format!("ihuza-relay-announcements-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("apology.rw.alaw"), [0xd5, 0x8a]).unwrap();
        let found = Announcements::read(&directory).unwrap();
        std::fs::write(directory.join("filler.en.alaw"), vec![0; MOST_BYTES as usize + 1]).unwrap();
        let too_long = Announcements::read(&directory).unwrap_err().to_string();
        std::fs::write(directory.join("filler.en.alaw"), []).unwrap();
        let empty = Announcements::read(&directory).unwrap_err();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(found.sound(Announcement::Apology, Locale::Rw, Law::A), [0xd5, 0x8a]);
        let mu = found.sound(Announcement::Apology, Locale::Rw, Law::Mu);
        assert!((Law::Mu.decode(mu[1]) - 8064).abs() < 300, "about as loud as it was");
        assert_eq!(found.sound(Announcement::Apology, Locale::En, Law::A).len(), 16_000);
        assert!(too_long.contains("filler.en.alaw"), "{too_long}");
        assert_eq!(empty.kind(), io::ErrorKind::InvalidData);
        assert!(empty.to_string().contains("filler.en.alaw"), "{empty}");
    }
}
