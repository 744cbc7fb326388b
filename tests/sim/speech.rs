//! Recordings of speech and what is said in them (`tests/speech/README.md`).

/// One recording: raw A-law at 8 kHz, so eight bytes are a millisecond.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Speech {
    /// Its file, without the ending.
    pub name: &'static str,
    pub text: &'static str,
    pub alaw: &'static [u8],
}

impl std::fmt::Debug for Speech {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Speech({})", self.name)
    }
}

impl Speech {
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|speech| speech.name == name)
    }

    pub fn ms(&self) -> u64 {
        self.alaw.len() as u64 / 8
    }
}

macro_rules! recordings {
    ($($constant:ident $name:literal $text:literal)*) => {
        $(pub const $constant: Speech = Speech {
            name: $name,
            text: $text,
            alaw: include_bytes!(concat!("../speech/", $name, ".alaw")),
        };)*

        /// Every recording.
        pub const ALL: [Speech; [$($name),*].len()] = [$($constant),*];
    };
}

recordings! {
    CALLER_QUESTION "caller_question.en"
        "Hello, I want to rent a house in Kimironko, two bedrooms, 300k RWF a month."
    CALLER_INTERRUPTS "caller_interrupts.en" "Wait, sorry! Is there any parking?"
    CALLER_THANKS "caller_thanks.en" "Thank you, send me a message. Goodbye."
    CALLER_RIDE "caller_ride.en" "And a moto from Kimironko to the airport, tomorrow at 8."
    CALLER_YES "caller_yes.en" "Yes, please."
    CALLER_QUESTION_FR "caller_question.fr" "Bonjour, je cherche une maison à louer à Kimironko, deux chambres."
    CALLER_QUESTION_SW "caller_question.sw" "Habari, natafuta nyumba ya kupanga Kimironko, vyumba viwili."
    AGENT_GREETING "agent_greeting.en" "Hello, this is EasyMO. How can I help you?"
    AGENT_LOOKING "agent_looking.en" "One moment, I am looking."
    AGENT_OFFER "agent_offer.en"
        "I found a house in Kimironko. It has two bedrooms and costs 300k RWF a month. It is close to the market, to the school and to the bus, and it has a garden with a wall. You can see it on Saturday in the morning, or on Monday after work."
    AGENT_PARKING "agent_parking.en" "Yes, there is parking behind the house. We will send you the details by message."
    AGENT_BEHIND "agent_behind.en" "Yes, there is parking behind the house."
    AGENT_RIDE "agent_ride.en" "A moto from Kimironko to the airport, tomorrow at 8. Shall I book it?"
    AGENT_BOOKED "agent_booked.en" "It is booked. We will send you all of it by message."
    AGENT_NOT_DONE "agent_not_done.en" "I am sorry, I could not do it."
    AGENT_NOTHING "agent_nothing.en" "I am sorry, I found nothing."
    AGENT_GREETING_FR "agent_greeting.fr" "Bonjour, ici EasyMO. Comment puis-je vous aider ?"
    AGENT_GREETING_SW "agent_greeting.sw" "Habari, hapa ni EasyMO. Nikusaidie nini?"
}
