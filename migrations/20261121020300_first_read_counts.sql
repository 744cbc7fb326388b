-- 20261121020300_first_read_counts.sql
-- An SMS of which only a reading is known has arrived when it was first read. A report of an earlier reading changed read_at and nothing else,
-- which the trigger did not look at: agent_sms kept the later time.
-- Safe to run again. Locks message_delivery_log for a moment. Undo: apply the trigger of 20261121013120.

drop trigger if exists message_delivery_log_follow_sms on public.message_delivery_log;
create trigger message_delivery_log_follow_sms
  after update of status, provider, provider_message_id, recipient, content, encoding, segments, session_id, sent_at, delivered_at, read_at, failed_at,
    expired_at, cost, cost_currency, error_code on public.message_delivery_log
  for each row when (new.channel = 'sms' and new.direction = 'outbound' and (
    old.status, old.provider, old.provider_message_id, old.recipient, old.content, old.encoding, old.segments, old.session_id, old.sent_at,
    old.delivered_at, old.read_at, old.failed_at, old.expired_at, old.cost, old.cost_currency, old.error_code)
    is distinct from (
    new.status, new.provider, new.provider_message_id, new.recipient, new.content, new.encoding, new.segments, new.session_id, new.sent_at,
    new.delivered_at, new.read_at, new.failed_at, new.expired_at, new.cost, new.cost_currency, new.error_code))
  execute function private.mirror_delivery();

-- Those of before.
do $$
declare
  v_log public.message_delivery_log;
begin
  for v_log in
    select l.* from public.message_delivery_log l
      join public.agent_sms s on s.delivery_id = l.id
     where l.channel = 'sms' and l.direction = 'outbound' and l.status = 'read' and l.delivered_at is null and s.delivered_at is distinct from l.read_at
  loop
    perform private.follow_delivery(v_log);
  end loop;
end
$$;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121020300'::text $$;

notify pgrst, 'reload schema';
