//! Scenarios (`scenarios/*.json`): who talks to us, what they want, in which language, and what must be true afterwards in
//! the database and on the phones.
//!
//! With the simulator, `model` in each step says what the model does, so that everything but the model is judged. With the
//! real model those lines are left aside, and what must be true afterwards judges the model as well.

mod scenario;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Result, Trouble};
use crate::openai::Script;
use crate::verbs::CallSeed;
use crate::world::World;

pub use scenario::{Call, Check, Expected, Model, Phone, Scenario, Step, read};

/// How a scenario went.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub title: String,
    /// What was not as it must be; empty: passed.
    pub faults: Vec<String>,
    pub duration: Duration,
    /// Every message the person got, by channel, oldest first.
    pub received: Vec<(String, String)>,
}

impl Outcome {
    pub fn passed(&self) -> bool {
        self.faults.is_empty()
    }

    /// A row of the report.
    pub fn to_value(&self, scenario: &Scenario) -> Value {
        json!({"title": self.title, "file": scenario.file, "language": scenario.language, "covers": scenario.covers, "passed": self.passed(),
               "faults": self.faults, "duration_ms": u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX),
               "received": self.received.iter().map(|(channel, text)| json!({"channel": channel, "text": text})).collect::<Vec<_>>()})
    }
}

/// Plays one scenario in a world where nobody else plays. `simulated`: the model is the simulator and does what the scenario says.
pub async fn play(world: &World, scenario: &Scenario, phone: &str, simulated: bool, patience: Duration) -> Outcome {
    let since = Instant::now();
    let mut faults = Vec::new();
    let played = steps(world, scenario, phone, simulated, patience).await;
    let unused = world.openai().unused();
    if let Err(trouble) = played {
        faults.push(format!("{trouble:?}"));
    } else {
        if unused > 0 {
            faults.push(format!("the model was asked {unused} times less than the scenario says"));
        }
        for check in &scenario.then {
            if check.simulated_only && !simulated {
                continue;
            }
            match judge(world, check, phone, patience).await {
                Ok(found) => faults.extend(found),
                Err(trouble) => faults.push(format!("{trouble:?}")),
            }
        }
    }
    Outcome { title: scenario.title.clone(), faults, duration: since.elapsed(), received: received(world, phone) }
}

async fn steps(world: &World, scenario: &Scenario, phone: &str, simulated: bool, patience: Duration) -> Result<()> {
    for sql in &scenario.prepare {
        world.query(&of(sql, phone), &[]).await?;
    }
    let mut written = 0;
    for step in &scenario.steps {
        written += usize::from(matches!(step, Step::Sms { .. } | Step::Whatsapp { .. }));
        let model = match step {
            Step::Sms { model, .. } | Step::Whatsapp { model, .. } => model.as_slice(),
            Step::Call(_) | Step::Do { .. } => &[],
        };
        if simulated {
            for said in model {
                world.openai().next_for("text", script(said));
            }
        }
        match step {
            Step::Sms { sms, .. } => {
                world.sms_from(phone, sms).await?;
                settled(world, phone, written, patience).await?;
            }
            Step::Whatsapp { whatsapp, .. } => {
                world.whatsapp_from(phone, whatsapp).await?;
                settled(world, phone, written, patience).await?;
            }
            Step::Call(call) => ended(world, call, phone, patience).await?,
            Step::Do { sql } => {
                world.query(&of(sql, phone), &[]).await?;
                // What an operator writes goes out with the next minute's sweep.
                world.cron().await?;
            }
        }
    }
    // What a tool sends is on its way while the answer is out already; only then is it certain what did not come as well.
    let sent = format!(
        "select not exists (select from message_delivery_log l where l.profile_id in {} and l.direction = 'outbound' and l.status in ('queued', 'sending'))",
        theirs(phone)
    );
    world.wait_for_sql(&sent, patience).await
}

/// The profiles of a number, as a list for `in`.
fn theirs(phone: &str) -> String {
    format!(
        "(select profile_id from profile_identities where value = '{phone}' union select id from profiles where phone_number = '{phone}')"
    )
}

fn script(said: &Model) -> Script {
    match said {
        Model::Say { say } => Script::Text(say.clone()),
        Model::Tools { tools } => {
            Script::Tools(tools.iter().map(|(name, given)| (name.clone(), given.clone())).collect())
        }
        Model::Refuse { refuse } => Script::Refusal(refuse.clone()),
    }
}

/// All that the person has written is stored and dealt with.
async fn settled(world: &World, phone: &str, written: usize, patience: Duration) -> Result<()> {
    let sql = format!(
        "select count(*) = {written} and bool_and(m.handled_at is not null)
           from conversation_messages m where m.direction = 'inbound' and m.profile_id in {}",
        theirs(phone)
    );
    world.wait_for_sql(&sql, patience).await
}

async fn ended(world: &World, call: &Call, phone: &str, patience: Duration) -> Result<()> {
    let mut seed = CallSeed::new(phone).locale(call.locale.as_deref().unwrap_or("en"));
    let said: Vec<(&str, &str)> = call.transcript.iter().map(|(role, text)| (role.as_str(), text.as_str())).collect();
    seed = seed.transcript(&said);
    if call.on_whatsapp {
        seed = seed.on_whatsapp_now();
    }
    let seeded = world.seed_call(&seed).await?;
    let answer = world.post_call_notify(&seeded).await?;
    if answer.status != 202 {
        return Err(Trouble::new(format!("the notification was not taken: {} {}", answer.status, answer.body)));
    }
    let sql = format!(
        "select coalesce((select status = 'done' from call_notifications where call_id = '{}'), false)",
        seeded.id
    );
    world.wait_for_sql(&sql, patience).await
}

async fn judge(world: &World, check: &Check, phone: &str, patience: Duration) -> Result<Vec<String>> {
    match &check.expected {
        Expected::Database { ask, is } => {
            let ask = of(ask, phone);
            // What comes behind an answer (a delivery report, a trigger) may be a moment late.
            let look = async || Ok((answer(world, &ask).await? == *is).then_some(()));
            match world.wait_for(&ask, patience.min(Duration::from_secs(5)), look).await {
                Ok(()) => Ok(Vec::new()),
                Err(_) => Ok(vec![format!("{ask}: {}, not {is}", answer(world, &ask).await?)]),
            }
        }
        Expected::Phone(expected) => {
            let got: Vec<String> = received(world, phone)
                .into_iter()
                .filter(|(channel, _)| *channel == expected.channel)
                .map(|(_, text)| text)
                .collect();
            Ok(expected.faults(&got))
        }
    }
}

async fn answer(world: &World, ask: &str) -> Result<Value> {
    let rows = world.rows(ask).await?;
    let values: Vec<Value> =
        rows.into_iter().map(|row| row.into_iter().next().map(|(_, value)| value).unwrap_or_default()).collect();
    Ok(match <[Value; 1]>::try_from(values) {
        Ok([one]) => one,
        Err(several) => Value::Array(several),
    })
}

fn received(world: &World, phone: &str) -> Vec<(String, String)> {
    let sms = world.mtn().messages_to(phone).into_iter().map(|sms| ("sms".to_owned(), sms.text));
    let whatsapp = world.whatsapp().messages_to(phone).into_iter().map(|sent| ("whatsapp".to_owned(), sent.shown));
    sms.chain(whatsapp).collect()
}

fn of(sql: &str, phone: &str) -> String {
    sql.replace("{phone}", phone)
        .replace("{profile}", &format!("(select id from profiles where phone_number = '{phone}')"))
}

/// Numbers that nobody else has, one a scenario.
pub fn phone_of(place: usize) -> Result<String> {
    let place = u32::try_from(place).ok().filter(|place| *place < 10_000);
    let place = place.ok_or_else(|| Trouble::new("too many scenarios"))?;
    Ok(format!("+25078{}", 9_310_000 + place))
}
