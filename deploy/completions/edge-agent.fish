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
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "run" -d 'Run in the foreground until SIGTERM; what is in the kernel stays there (see `down`)'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "join" -d 'Make this machine a node: write the configuration and the join token, start the agent\'s unit, wait until the node has joined, and show its status'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "check" -d 'Judge the configuration and the files that it names; needs no running agent, changes nothing'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "import" -d 'Make a configuration of strongSwan\'s swanctl.conf, to judge with `check`; changes nothing else'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "status" -d 'Show peers, tunnels, obstacles and incidents of the running agent'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "diagnose" -d 'Say what keeps this node, a peer or a pod from being reached, and what to do; changes nothing'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "ping" -d 'Measure round trip and loss through the tunnel to a peer or a pod'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "capture" -d 'Write the IKE messages with a peer, without their encryption, for Wireshark and tcpdump'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "down" -d 'Remove what the agent keeps in the kernel: SAs, policies, routes, the firewall table, and last the guard'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "uninstall" -d 'Remove all that agent and plugin made on this host, so that it is as before'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "rekey" -d 'Give the CHILD_SAs or the IKE SA with a peer new keys now, without losing a packet'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "hold-sockets" -d 'Hold the agent\'s UDP sockets while no agent runs; started by `run`, not by hand'
complete -c edge-agent -n "__fish_edge_agent_needs_command" -f -a "install-cni" -d 'Register the plugin with the container runtime, once this node has its first segment'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand run" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand run" -l name -d 'This node\'s name, instead of the one in the file, so that many nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand join" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand join" -l name -d 'This node\'s name, if the token is bound to none. (Default: the host name)' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand join" -l timeout -d 'Longest wait, seconds; 0: only write the files and start the unit' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand join" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand check" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand check" -l name -d 'This node\'s name, instead of the one in the file, so that many nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand check" -l json -d 'Print JSON, for scripts'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand import" -l into -d 'Write agent.toml and the files that it names into this directory; files that are there are not replaced. Without it, print the configuration' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand import" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand status" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand status" -l name -d 'This node\'s name, instead of the one in the file, so that many nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand status" -s w -l watch -d 'Show it again every 2 s, until Ctrl-C'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand status" -l json -d 'Print JSON, for scripts; with --watch one document in a line'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand status" -s h -l help -d 'Print help'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand diagnose" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand diagnose" -l name -d 'This node\'s name, instead of the one in the file, so that many nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand diagnose" -l json -d 'Print JSON, for scripts'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand diagnose" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -l name -d 'This node\'s name, instead of the one in the file, so that many nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -l count -d 'Number of requests' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -l interval -d 'Time from one request to the next, at least 10ms' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -l timeout -d 'Longest wait for the answers to the last requests' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -l json -d 'Print JSON, for scripts'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand ping" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -l name -d 'This node\'s name, instead of the one in the file, so that many nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -l from -d 'Another address from which the peer comes, if the agent knows none' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -l write -d 'Make this file; without it, write to standard output' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -l duration -d 'End after this time' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -l max-size -d 'End before more than this many octets are written' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand capture" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand down" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand down" -l name -d 'This node\'s name, instead of the one in the file, so that many nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand down" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand uninstall" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand uninstall" -l name -d 'This node\'s name, instead of the one in the file, so that many nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand uninstall" -l cut-off-pods -d 'Go on although pods are attached: they lose the network'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand uninstall" -l purge -d 'Remove the configuration and the join token as well; keys of static peers stay'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand uninstall" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand rekey" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand rekey" -l name -d 'This node\'s name, instead of the one in the file, so that many nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand rekey" -l child -d 'Rekey only the CHILD_SAs of this [[peer.child]]' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand rekey" -l ike -d 'Rekey the IKE SA; its CHILD_SAs stay'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand rekey" -s h -l help -d 'Print help'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand hold-sockets" -s h -l help -d 'Print help'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -s c -l config -d 'The TOML file' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -l name -d 'This node\'s name, instead of the one in the file, so that many nodes can share a file' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -l plugin -d 'Copy this edge-cni program into [cni] bin_dir first' -r -F
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -l timeout -d 'Longest wait for the first segment, seconds; 0 checks once' -r
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -l plugin-only -d 'Copy the plugin and do nothing else; for use before the agent has run'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -l keep -d 'Keep running: wait for the first segment for as long as it takes, and write the conflist again whenever it is lost or its content changes'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -l remove -d 'Remove the conflist instead: the runtime starts no more pods with this network'
complete -c edge-agent -n "__fish_edge_agent_using_subcommand install-cni" -s h -l help -d 'Print help (see more with \'--help\')'
