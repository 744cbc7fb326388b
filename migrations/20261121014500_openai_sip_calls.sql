-- 20261121014500_openai_sip_calls.sql
-- A call over OpenAI's own SIP waits for a word: whether it is taken, for whom, and why not.
-- Safe to run again. Locks no table. Undo: drop the function.
create or replace function public.admit_openai_call(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_sid text := private.required(p, 'call_sid');
  v_call public.voice_calls;
  v_p jsonb := (p - 'called') || jsonb_build_object('origin', 'openai_sip', 'direction', 'inbound', 'trunk', 'openai_sip');
  v_client_id uuid;
  v_to text;
  v_reason text;
begin
  select c.* into v_call from public.voice_calls c where c.origin = 'openai_sip' and c.provider_call_id = v_sid;
  if found then
    -- Told again what it was told the first time.
    if v_call.ended_at is not null and v_call.end_cause = 'rejected' then
      return jsonb_build_object('decision', 'reject', 'reason', v_call.end_reason, 'call_id', v_call.id);
    end if;
    return public.open_voice_call(v_p);
  end if;

  -- The first of the numbers that is somebody's. Where nobody has a number for calls, all calls are the default client's.
  select n.client_id, n.address into v_client_id, v_to
    from jsonb_array_elements_text(coalesce(nullif(p -> 'called', 'null'), '[]')) with ordinality a (address, at)
    join public.client_numbers n on n.channel = 'voice' and n.address = a.address
   order by a.at limit 1;
  if v_client_id is null then
    if exists (select from public.client_numbers n where n.channel = 'voice') then
      -- No row: whoever knows the address of the trunk could fill the table.
      return jsonb_build_object('decision', 'reject', 'reason', 'unknown_number');
    end if;
    v_client_id := private.default_client_id();
    v_to := p -> 'called' ->> 0;
  end if;
  v_p := v_p || jsonb_build_object('to', v_to);

  v_reason := case
    when private.voice_agent_json(v_client_id, null, coalesce(nullif(p ->> 'agent', ''), 'call-center'), 'en') is null then 'no_agent'
    when exists (
      select from public.v_budget_months m
        join public.client_budgets b on b.client_id = m.client_id and b.currency = m.currency
       where m.client_id = v_client_id and m.month = date_trunc('month', v_now at time zone b.time_zone)::date and m.committed >= m.hard_limit) then 'budget'
    when exists (select from public.provider_health h where h.provider = 'openai' and h.state = 'open' and h.open_until > v_now) then 'model_down'
  end;
  if v_reason is not null then
    return jsonb_build_object('decision', 'reject', 'reason', v_reason,
      'call_id', public.end_voice_call(v_p || jsonb_build_object('cause', 'rejected', 'reason', v_reason)) -> 'call_id');
  end if;
  return public.open_voice_call(v_p);
end
$$;
comment on function public.admit_openai_call is
  'RPC: whether a call over OpenAI''s SIP is taken. `reject` with a reason, kept as the call''s end where a client has the number; else as open_voice_call. `called`: the numbers that may have been meant, the likeliest first.';
revoke execute on function public.admit_openai_call(jsonb) from public, anon, authenticated;
grant execute on function public.admit_openai_call(jsonb) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121014500'::text $$;

notify pgrst, 'reload schema';
