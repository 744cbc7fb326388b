-- 20261121018530_forgotten_words.sql
-- What a person has had forgotten is not kept in the calls of `remember` either.
-- Safe to run again. Locks no table. Undo: apply tool_memory of 20261121014040 again and drop memory_key.
create or replace function private.memory_key(p_key text) returns text
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return lower(regexp_replace(btrim(coalesce(p_key, '')), '[^A-Za-z0-9]+', '_', 'g'));
end
$$;
comment on function private.memory_key is 'The name of a memory, as it is kept: Preferred area -> preferred_area.';

create or replace function private.tool_memory(p_who jsonb, p_name text, p_arguments jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_client uuid := (p_who ->> 'client_id')::uuid;
  v_profile uuid := (p_who ->> 'profile_id')::uuid;
  v_key text := private.memory_key(p_arguments ->> 'key');
  v_count integer;
begin
  if p_name = 'forget' then
    delete from public.voice_memories m where m.client_id = v_client and m.profile_id = v_profile and (v_key = '' or m.key = v_key);
    get diagnostics v_count = row_count;
    -- The calls that kept it have its words as well, also those of a value that a later one replaced.
    update public.mcp_tool_calls t set arguments = private.forgotten_arguments()
     where t.name = 'remember' and t.client_id = v_client
       and (t.session_id in (select s.id from public.omnichannel_sessions s where s.client_id = v_client and s.profile_id = v_profile)
            or t.call_id in (select c.id from public.voice_calls c where c.client_id = v_client and c.profile_id = v_profile))
       and t.arguments <> private.forgotten_arguments()
       and (v_key = '' or private.memory_key(t.arguments ->> 'key') = v_key);
    return private.tool_answered(jsonb_build_object('forgotten', v_count));
  end if;
  if v_key !~ '^[a-z][a-z0-9_]{0,59}$' or nullif(btrim(p_arguments ->> 'value'), '') is null then
    return private.tool_refused('key must be a short English name and value a text');
  end if;
  insert into public.voice_memories (client_id, profile_id, call_id, session_id, key, value, said_at)
  values (v_client, v_profile, case p_who ->> 'surface' when 'voice' then (p_who ->> 'call_id')::uuid end, (p_who ->> 'session_id')::uuid, v_key,
    left(btrim(p_arguments ->> 'value'), 500), p_now)
  on conflict (client_id, profile_id, key) do update
    set value = excluded.value, call_id = excluded.call_id, session_id = excluded.session_id, expires_at = null, source = 'agent', confidence = 1,
        said_at = excluded.said_at;
  -- So many that a model can be shown them; the oldest go.
  delete from public.voice_memories m where m.id in (
    select o.id from public.voice_memories o where o.client_id = v_client and o.profile_id = v_profile order by o.said_at desc offset 50);
  return private.tool_answered(jsonb_build_object('remembered', v_key));
end
$$;

comment on function private.tool_memory is 'Tools remember and forget; what is forgotten goes from the calls that kept it too.';
revoke execute on function private.memory_key(text) from public, anon, authenticated;
grant execute on function private.memory_key(text) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121018530'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
