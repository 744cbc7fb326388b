//! What running a tool has in common in texts, in calls and over MCP: the messages that it queues.

use ihuza_core::{
    json::{items_at, obj},
    log::{Event, Level},
};
use serde_json::Value;

use crate::{at_once, context::Cx, queue};

/// Sends off the messages that a tool has queued, and leaves of its answer what the model may see.
pub async fn answered(cx: &Cx, mut answer: Value) -> Value {
    let place = |id: &Value| {
        let envelope =
            queue::Envelope::new(&cx.correlation_id, obj(&mut [("kind", "send".into()), ("delivery_id", id.into())]));
        async move {
            // Not placed is not lost: the delivery is due in the database, and the next sweep finds it.
            if queue::place(cx, "delivery-retry", &envelope, 0).await.is_err() {
                cx.log(Level::Warn, Event::MessageDeferred, "a message of a tool waits for the next sweep", &[]);
            }
        }
    };
    at_once::all(items_at(&answer, "deliveries").iter().map(place)).await;
    if let Some(fields) = answer.as_object_mut() {
        fields.remove("deliveries");
    }
    answer
}
