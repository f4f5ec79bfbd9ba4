# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_edge_agent_global_optspecs
    string join \n h/help V/version
end

function __fish_edge_agent_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_edge_agent_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_edge_agent_using_subcommand
    set -l cmd (__fish_edge_agent_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c edge-agent -n "__fish_edge_agent_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -s V -l version -d 'Print version'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "run" -d 'Run in the foreground until SIGTERM; tunnels and routes stay in the kernel afterwards (see `down`)'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "join" -d 'Make this machine a node: write the configuration and the join token, start the agent\'s unit, wait until the node has joined, and show its status'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "check" -d 'Check the configuration and the files that it names; needs no running agent and changes nothing'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "import" -d 'Convert strongSwan\'s swanctl.conf into a configuration for the agent; changes nothing else'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "status" -d 'Show peers, tunnels, obstacles and incidents of the running agent'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "diagnose" -d 'Find out why this node, a peer or a pod cannot be reached, and what to do about it; changes nothing'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "ping" -d 'Measure round-trip time and packet loss through the tunnel to a peer or a pod'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "capture" -d 'Write the IKE messages exchanged with a peer, decrypted, for Wireshark and tcpdump'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "down" -d 'Remove what the agent keeps in the kernel: SAs, policies, routes, the firewall table and, last, the guard'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "uninstall" -d 'Remove everything that the agent and the plugin created on this host'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "rekey" -d 'Rekey the CHILD_SAs or the IKE SA of a peer now, without packet loss'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "hold-sockets" -d 'Hold the agent\'s UDP sockets open while the agent is replaced, in a pod beside it'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "install-cni" -d 'Register the plugin with the container runtime, once this node has its first segment'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand run" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand run" -l name -d 'This node\'s name. It overrides the name in the file, so that several nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand run" -l log-json -d 'Log as JSON, one object per line'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand join" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand join" -l name -d 'This node\'s name, if the token is not bound to a name. (Default: the host name)' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand join" -l timeout -d 'Maximum time to wait, in seconds; 0 only writes the files and starts the unit' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand join" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand check" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand check" -l name -d 'This node\'s name. It overrides the name in the file, so that several nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand check" -l json -d 'Print JSON, for scripts'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand import" -l into -d 'Write agent.toml and the files that it names into this directory; existing files are not replaced. Without this option, print the configuration' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand import" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand status" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand status" -l name -d 'This node\'s name. It overrides the name in the file, so that several nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand status" -s w -l watch -d 'Refresh every 2 s, until Ctrl-C'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand status" -l json -d 'Print JSON, for scripts; with --watch, one document per line'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand status" -s h -l help -d 'Print help'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand diagnose" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand diagnose" -l name -d 'This node\'s name. It overrides the name in the file, so that several nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand diagnose" -l json -d 'Print JSON, for scripts'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand diagnose" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -l name -d 'This node\'s name. It overrides the name in the file, so that several nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -l count -d 'Number of requests' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -l interval -d 'Time between two requests, at least 10ms' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -l timeout -d 'Maximum time to wait for the answers to the last requests' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -l json -d 'Print JSON, for scripts'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -l name -d 'This node\'s name. It overrides the name in the file, so that several nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -l from -d 'Another address from which the peer sends, if the agent knows none' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -l write -d 'Write to this file, which is created; without this option, write to standard output' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -l duration -d 'Stop after this time' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -l max-size -d 'Stop before the capture exceeds this size in octets' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand down" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand down" -l name -d 'This node\'s name. It overrides the name in the file, so that several nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand down" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand uninstall" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand uninstall" -l name -d 'This node\'s name. It overrides the name in the file, so that several nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand uninstall" -l cut-off-pods -d 'Continue even if pods are attached; they lose their network'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand uninstall" -l purge -d 'Remove the configuration and the join token as well; keys of static peers stay'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand uninstall" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand rekey" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand rekey" -l name -d 'This node\'s name. It overrides the name in the file, so that several nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand rekey" -l child -d 'Rekey only the CHILD_SAs of this [[peer.child]]' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand rekey" -l ike -d 'Rekey the IKE SA; its CHILD_SAs stay'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand rekey" -s h -l help -d 'Print help'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand hold-sockets" -l listen -d 'Listen on this file: socket-holder/holder.sock in the agent\'s run_dir (/run/edge-cni/socket-holder/holder.sock). Its directory is made, and closed to others. The agent itself starts this command without the option' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand hold-sockets" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -l name -d 'This node\'s name. It overrides the name in the file, so that several nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -l plugin -d 'Copy this edge-cni program into [cni] bin_dir first' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -l timeout -d 'Maximum time to wait for the first segment, in seconds; 0 checks once' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -l plugin-only -d 'Copy the plugin and do nothing else; for use before the agent has been started'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -l keep -d 'Keep running: wait for the first segment without a time limit, and write the conflist again whenever it is missing or its content must change'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -l remove -d 'Remove the conflist instead; the runtime then starts no new pods with this network. While pods are attached the conflist stays, because the runtime needs it to remove them: the command names them and fails'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -s h -l help -d 'Print help (see more with \'--help\')'
