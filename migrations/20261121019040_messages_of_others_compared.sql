-- 20261121019040_messages_of_others_compared.sql
-- The daily comparison with a carrier knows the messages that workflows outside sent and wrote into agent_sms: they are compared like ours, status
-- and cost put right there, and no longer told as unknown.
-- Safe to run again. Locks no table. Undo: apply public.record_reconciliation of 20261121012310.

create or replace function public.record_reconciliation(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_row public.reconciliations := private.held_reconciliation(p, v_now);
  v_message jsonb;
  v_log public.message_delivery_log;
  v_other public.agent_sms;
  v_word text;
  v_key text;
  v_outcome text;
  v_price numeric;
  v_events jsonb := '[]';
  v_answer jsonb := '{}';
begin
  if v_row.status = 'done' then
    return jsonb_build_object('unseen', '[]'::jsonb, 'fallbacks', '[]'::jsonb, 'deliveries', '[]'::jsonb);
  end if;
  for v_message in select m from jsonb_array_elements(coalesce(nullif(p -> 'messages', 'null'), '[]')) m loop
    v_key := private.provider_message_key(private.required(v_message, 'provider_message_id'));
    if exists (select from public.reconciled_messages m where m.reconciliation_id = v_row.id and m.provider_message_key = v_key) then
      continue;
    end if;
    select * into v_log from public.message_delivery_log l
     where l.id = private.delivery_of_report(null, v_row.provider, v_message ->> 'provider_message_id');
    v_price := case when v_message -> 'pricing' ->> 'amount' ~ '^[0-9]{1,6}([.][0-9]{1,12})?$'
                    then trunc((v_message -> 'pricing' ->> 'amount')::numeric, 6) end;
    v_other := null;
    if v_log.id is null and not coalesce((v_message ->> 'missing')::boolean, false) then
      select * into v_other from public.agent_sms s
       where s.provider = v_row.provider and s.provider_message_sid = v_message ->> 'provider_message_id' and s.delivery_id is null;
      v_word := private.word_of_report(v_message ->> 'status', v_message ->> 'raw_status');
      -- What whoever sent it said of its cost, or a bill of before, stands; a price of the list was only expected.
      if v_message -> 'pricing' ->> 'currency' !~ '^[A-Z]{3}$' or v_other.cost_source in ('writer', 'first_pricing') then
        v_price := null;
      end if;
    end if;
    v_outcome := case
      when coalesce((v_message ->> 'missing')::boolean, false) then 'unknown_there'
      when v_other.id is not null then case
        when private.simple_sms_rank(private.simple_sms_status(v_word)) > private.simple_sms_rank(v_other.status) then 'repaired'
        when v_price is not null and (v_other.cost is distinct from v_price or v_other.cost_currency is distinct from v_message -> 'pricing' ->> 'currency'
          or v_other.cost_source is distinct from 'provider') then 'priced'
        else 'same' end
      when v_log.id is null then 'unknown_here'
      when private.delivery_status_rank(v_message ->> 'status') > private.delivery_status_rank(v_log.status) then 'repaired'
      when v_price is not null
        and (v_log.cost is distinct from v_price or v_log.cost_currency is distinct from v_message -> 'pricing' ->> 'currency') then 'priced'
      else 'same' end;
    insert into public.reconciled_messages (reconciliation_id, provider_message_key, provider_message_id, delivery_id, outcome)
    values (v_row.id, v_key, v_message ->> 'provider_message_id', v_log.id, v_outcome);
    if v_other.id is not null then
      if v_outcome in ('repaired', 'priced') then
        perform private.apply_sms_report(v_other.id, v_word, coalesce((v_message ->> 'occurred_at')::timestamptz, v_now), v_message ->> 'error_code',
          v_price, case when v_price is not null then v_message -> 'pricing' ->> 'currency' end);
      end if;
    elsif v_outcome in ('repaired', 'priced') then
      v_events := v_events || (v_message || jsonb_build_object('provider', v_row.provider));
    end if;
  end loop;
  if v_events <> '[]' then
    v_answer := public.record_delivery_events(jsonb_build_object('source', 'reconciliation', 'events', v_events, 'now', v_now,
      'correlation_id', p ->> 'correlation_id'));
  end if;
  return jsonb_build_object(
    'unseen', case when coalesce((p ->> 'unseen')::boolean, false) then private.unseen_deliveries(v_row, 50) else '[]' end,
    'fallbacks', coalesce(v_answer -> 'fallbacks', '[]'), 'deliveries', coalesce(v_answer -> 'deliveries', '[]'));
end
$$;
comment on function public.record_reconciliation is
  'RPC: what the provider says of some messages (missing: it does not know one of ours); repairs status and cost, of messages that others wrote into agent_sms as well. With `unseen` also our messages that it has not told of.';
comment on column public.reconciliations.compared is 'list: messages that both know, those of others in agent_sms included; age: all that went out on that day.';
comment on column public.reconciliations.unknown_here is 'Messages of the provider''s that neither our log nor agent_sms knows.';

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121019040'::text $$;

notify pgrst, 'reload schema';
