//! The ride that was booked on the phone is changed by SMS: one row of transport_bookings, before and after.

use anyhow::{Context, Result, ensure};
use ihuza_sim::verbs::SeededCall;
use serde_json::Value;

use super::story::{Story, step};
use crate::progress;

impl Story<'_> {
    /// An hour later than booked, in the person's words.
    pub(super) async fn ride_is_changed(
        &mut self,
        who: &str,
        key: &str,
        phone: &str,
        call: &SeededCall,
        session: &str,
    ) -> Result<()> {
        let wish = "Please make the moto 9 o'clock";
        progress::note("The ride of the call is changed by SMS:");
        let answer = self.says(who, key, phone, session, ("ride_changed", wish)).await?;
        ensure!(answer.contains("09:00"), step(who, "the answer does not tell of the new time"));
        let told = self.changed_row(call).await.with_context(|| step(who, "the ride is not changed in its row"))?;
        progress::done(&format!("the same row of transport_bookings: {told}"));
        Ok(())
    }

    /// What became of the booking of the call, as `request_changes` tells it.
    async fn changed_row(&self, call: &SeededCall) -> Result<String> {
        let sql = format!(
            "select b.number, to_char(b.pickup_at at time zone 'Africa/Kigali', 'YYYY-MM-DD HH24:MI') as at,
                    (select string_agg(c.changed_by || ' by ' || c.channel, ', then ' order by c.id) from public.request_changes c
                      where c.transport_booking_id = b.id) as changes,
                    (select count(*) from public.transport_bookings o where o.profile_id = b.profile_id) as theirs,
                    (select t.result #>> '{{result,changed,pickup_at,0}}' from public.mcp_tool_calls t
                      where t.session_id = b.session_id and t.name = 'book_transport' and t.turn_id is not null) as before
               from public.transport_bookings b where b.call_id = '{}'",
            call.id
        );
        let row = self.world.rows(&sql).await?.into_iter().next().context("there is no booking of the call")?;
        let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default();
        ensure!(row.get("theirs").and_then(Value::as_i64) == Some(1), "there are several bookings: {row:?}");
        ensure!(
            text("at").ends_with("09:00") && text("before").ends_with("T08:00"),
            "its time is not changed: {row:?}"
        );
        ensure!(text("changes") == "person by voice, then person by sms", "who changed it is not told: {row:?}");
        let number = row.get("number").unwrap_or(&Value::Null);
        Ok(format!("ride {number} at {} instead of {}", text("at"), text("before").replace('T', " ")))
    }
}
