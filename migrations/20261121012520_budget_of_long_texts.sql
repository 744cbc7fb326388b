-- 20261121012520_budget_of_long_texts.sql
-- What an SMS can cost at most follows the client's own most segments (settings.sms_max_segments), as its texts do.
-- Safe to run again. Locks no table. Undo: apply the function of 20261121012330.

create or replace function private.most_segments(p_client_id uuid, p_purpose text) returns integer
language plpgsql stable set search_path = '' as $$
declare
  v_own text := (select c.settings ->> 'sms_max_segments' from public.clients c where c.id = p_client_id);
begin
  -- As ihuza_edge::claim::Client::most_segments, with ihuza_core::summary::SMS_MAX_SEGMENTS and ihuza_core::sms::REPLY_MAX_SEGMENTS.
  if v_own ~ '^[0-9]{1,9}$' then
    return greatest(1, least(v_own::integer, 10));
  end if;
  return case p_purpose when 'call_summary' then 2 else 3 end;
end
$$;
comment on function private.most_segments is 'Most segments of one SMS of this client.';

create or replace function private.guards_of_work(
  p_client_id uuid, p_sms_delivery_id uuid, p_whatsapp_delivery_id uuid, p_profile jsonb, p_purpose text, p_exempt boolean, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
  v_wanted jsonb := '[]';
  v_refused jsonb;
begin
  if p_profile ->> 'phone_number' is not null then
    v_wanted := v_wanted || jsonb_build_object('id', p_sms_delivery_id, 'client_id', p_client_id, 'channel', 'sms', 'number', p_profile ->> 'phone_number',
      'segments', private.most_segments(p_client_id, p_purpose), 'exempt', p_exempt);
  end if;
  if p_profile ->> 'whatsapp' <> 'no' or p_profile ->> 'whatsapp_to' is not null then
    -- An answer is only ever free text.
    v_wanted := v_wanted || jsonb_build_object('id', p_whatsapp_delivery_id, 'client_id', p_client_id, 'channel', 'whatsapp',
      'number', coalesce(p_profile ->> 'whatsapp_to', p_profile ->> 'phone_number', p_profile ->> 'whatsapp_user_id'),
      'kind', case p_purpose when 'call_summary' then null else 'text' end, 'exempt', p_exempt);
  end if;
  v_refused := private.pass_guards(v_wanted, p_now);
  return jsonb_build_object('refused', jsonb_strip_nulls(jsonb_build_object(
    'sms', v_refused ->> p_sms_delivery_id::text, 'whatsapp', v_refused ->> p_whatsapp_delivery_id::text)));
end
$$;

revoke execute on function private.most_segments(uuid, text) from public, anon, authenticated;
grant execute on function private.most_segments(uuid, text) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012520'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
