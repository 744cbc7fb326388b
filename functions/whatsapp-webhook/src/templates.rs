//! What Meta says of our templates: kept, for the next summary to be sent by.

use ihuza_core::{
    json::{items_at, obj, str_at},
    log::{Event, Level},
    whatsapp_template::TemplateUpdate,
};
use ihuza_edge::{consume::Verdict, context::Cx, database, queue::Envelope};
use serde_json::Value;

/// Updates a queue message carries: one transaction stays short.
const SLICE: usize = 50;

pub fn work(cx: &Cx, queue: &'static str, updates: &[TemplateUpdate]) -> Vec<(&'static str, Envelope)> {
    let slices = updates.chunks(SLICE).map(|slice| slice.iter().map(TemplateUpdate::to_value).collect::<Vec<Value>>());
    slices.map(|slice| (queue, Envelope::new(&cx.correlation_id, obj(&mut [("templates", slice.into())])))).collect()
}

/// Safe to repeat, in any order: of each thing said the newest counts.
pub async fn record(cx: Cx, envelope: Envelope) -> Verdict {
    let p = obj(&mut [("updates", envelope.body.get("templates").into())]);
    let recorded = match database::rpc(&cx, "record_template_updates", &p).await {
        Ok(recorded) => recorded,
        Err(error) => return Verdict::after(&error, &envelope),
    };
    for row in items_at(&recorded, "templates") {
        let text = |name| str_at(row, name).unwrap_or("unknown");
        cx.log(
            Level::Info,
            Event::WhatsappTemplateRecorded,
            &[text("name"), " in ", text("language"), " is ", text("status"), ", ", text("category")].concat(),
            &[("template", row.into())],
        );
    }
    Verdict::Done
}
