create or replace procedure fleet.verify_adoption(p_source regclass, inout p_state text default null)
language plpgsql
as $$
begin
  call fleet.verify_import(p_source, p_state);
end
$$;

comment on procedure fleet.verify_adoption(regclass, text) is 'Old name of fleet.verify_import(); goes in 0.3.';
